"""Recipes: what each setting does to a run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from factorize.errors import UnsupportedLayerError
from factorize.tune import FinetuneConfig, finetune
from factorize.tune.distance import distance
from factorize.tune.diverging import Losses
from factorize.tune.optimizer import Average, optimizer_of, pace
from factorize.types import Data


def net(seed: int, chain: bool = False, width: int = 8, norm: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    conv: nn.Module = nn.Conv2d(width, width, 3, padding=1)
    if chain:
        conv = nn.Sequential(nn.Conv2d(width, 4, (3, 1), padding=(1, 0)),
                             nn.Conv2d(4, width, (1, 3), padding=(0, 1)))  # fmt: skip
    middle = nn.BatchNorm2d(width) if norm else nn.Identity()
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), middle, nn.ReLU(), conv, nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))  # fmt: skip


def images_of(count: int = 64, labelled: bool = True, batch: int = 16) -> Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 8, 8, generator=generator)
    labels = torch.randint(0, 4, (count,), generator=generator)
    held = (images, labels) if labelled else (images,)
    train = DataLoader(TensorDataset(*held), batch_size=batch, shuffle=True)
    return Data(train, [tuple(t[:32] for t in held)], None, labelled, 4, "random images")


def same(a: nn.Module, b: nn.Module, **close: float) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.allclose(x, y, **close) for x, y in pairs)


def test_parts_of_a_batch_give_the_gradient_of_the_whole() -> None:
    models = []
    for parts in (1, 3):
        model = net(1, chain=True)
        config = FinetuneConfig(2, optimizer="sgd", lr=0.1, micro_batches=parts, flip=True)
        finetune(model, net(0), images_of(), replace(config, may_stay=False))
        models.append(model)
    assert same(*models, atol=1e-6)
    assert not same(models[0], net(1, chain=True), atol=1e-3)


def test_features_alone_bring_the_replaced_layer_closer() -> None:
    original, model = net(0), net(0, chain=True)
    data = images_of(labelled=False)
    config = FinetuneConfig(10, lr=1e-2, logit_weight=0, label_weight=0, feature_weight=1.0)

    def far(tuned: nn.Module) -> float:
        x = data.holdout[0][0]  # type: ignore[index]
        a, b = original[:4](x), tuned[:4](x)  # type: ignore[index]
        return float(((a - b).square().mean() / a.square().mean()).detach())

    before = far(model)
    finetune(model, original, data, config, score=lambda m: -far(m))
    assert far(model) < 0.5 * before


def test_features_need_a_replaced_layer() -> None:
    config = FinetuneConfig(1, feature_weight=1.0)
    with pytest.raises(UnsupportedLayerError, match="layers that were replaced"):
        finetune(net(1), net(0), images_of(), config)


def test_the_average_is_what_is_kept() -> None:
    seen: list[torch.Tensor] = []
    model = net(1)

    def score(m: nn.Module) -> float:
        seen.append(m[0].weight.detach().clone())  # type: ignore[index]
        return float(len(seen))

    finetune(model, net(0), images_of(), FinetuneConfig(2, ema=0.99), score=score)
    plain: list[torch.Tensor] = []
    other = net(1)
    finetune(other, net(0), images_of(), FinetuneConfig(2), progress=lambda *_: plain.append(
        other[0].weight.detach().clone()), score=lambda m: float(len(plain)))  # fmt: skip
    want = seen[0].clone()
    for step, weight in enumerate(plain):
        decay = min(0.99, (1 + step) / (10 + step))
        want = decay * want + (1 - decay) * weight
    assert torch.allclose(model[0].weight, want, atol=1e-6)  # type: ignore[index]
    assert not torch.allclose(want, plain[-1], atol=1e-4)


def test_an_average_is_swapped_in_and_out() -> None:
    model = net(1, norm=True)
    average = Average(model, 0.5)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    average.swap()
    assert all(torch.equal(v, start[k]) for k, v in model.state_dict().items())
    average.swap()
    assert all(torch.equal(v, start[k] + 1) for k, v in model.state_dict().items())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_one_cycle_is_torchs(optimizer: str) -> None:
    config = FinetuneConfig(1, lr=0.3, optimizer=optimizer, schedule="one_cycle")
    weight = nn.Parameter(torch.ones(2, 2))
    ours, theirs = (optimizer_of([weight], config) for _ in range(2))
    schedule = torch.optim.lr_scheduler.OneCycleLR(theirs, 0.3, 50, final_div_factor=1e4)
    for step in range(50):
        pace(ours, config, step, 50)
        for name in ("lr", "betas" if optimizer == "adamw" else "momentum"):
            assert ours.param_groups[0][name] == pytest.approx(theirs.param_groups[0][name])
        if step < 49:
            theirs.step()
            schedule.step()


def test_no_patience_is_left() -> None:
    scores = iter([0.1, 0.9, 0.5, 0.6, 0.7])
    result = finetune(
        net(1), net(0), images_of(), FinetuneConfig(9, patience=2), score=lambda m: next(scores)
    )
    assert result.epochs_done == 3
    assert result.best_epoch == 1
    assert result.stopped == "no better score for 2 epochs"
    assert not result.diverged


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_diverging_run_ends_with_the_best(optimizer: str) -> None:
    original = net(0)
    torch.nn.init.normal_(original[-1].weight, std=3.0)  # type: ignore[index]
    model = net(0)
    model.load_state_dict(original.state_dict())
    start = {k: v.clone() for k, v in model.state_dict().items()}
    config = FinetuneConfig(20, lr=100.0, optimizer=optimizer, max_grad_norm=0, label_weight=0)
    result = finetune(model, original, images_of(labelled=False), config)
    assert result.diverged
    assert result.stopped is not None
    assert "lower the learning rate, 100" in result.stopped
    assert result.epochs_done < 20
    assert result.best_epoch == 0
    assert all(torch.equal(v, start[k]) for k, v in model.state_dict().items())


def test_divergence_is_told_from_a_hard_start() -> None:
    healthy, hard, dead, rising = (Losses() for _ in range(4))
    for step in range(60):
        healthy.add(0.1 + 0.05 * (step % 3), 3.0, 128)
        hard.add(max(2.9, 6.0 - 0.1 * step), 3.0, 128)  # worse than blank at first, falling
        dead.add(0.1 if step == 0 else 3.0, 3.0, 128)
        rising.add(0.1 * 1.2**step, 3.0, 128)
    assert healthy.diverged(True) is None
    assert hard.diverged(True) is None
    assert dead.diverged(False) is None
    assert "always answering the same" in (dead.diverged(True) or "")
    assert "where always answering zeros has 3" in (rising.diverged(False) or "")


@pytest.mark.parametrize("batch", [2, 8, 64])
def test_a_net_that_knows_nothing_and_learns_nothing_is_not_taken_to_diverge(batch: int) -> None:
    told = 0
    for seed in range(40):
        losses, draw = Losses(), torch.Generator().manual_seed(seed)
        for _ in range(150):
            answers, wanted = (3 * torch.randn(batch, 10, generator=draw) for _ in range(2))
            loss = float(distance([answers], [wanted]))
            losses.add(loss, float(distance([torch.zeros_like(wanted)], [wanted])), batch)
        told += losses.diverged(ends_epoch=True) is not None
    assert told == 0


def test_memory_format_and_half_precision_are_of_the_run_alone() -> None:
    model, original = net(1, norm=True), net(0, norm=True)
    config = FinetuneConfig(1, channels_last=True, precision="bfloat16")
    result = finetune(model, original, images_of(), replace(config, may_stay=False))
    assert result.mixed_precision == "bf16"
    for one in (model, original):
        weight = one[0].weight  # type: ignore[index]
        assert weight.is_contiguous()
        assert weight.dtype == torch.float32
    plain = net(1, norm=True)
    finetune(plain, original, images_of(), FinetuneConfig(1, may_stay=False))
    assert same(model, plain, atol=0.05)
    assert not same(model, plain, atol=1e-7)


def test_scalars_are_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = FinetuneConfig(2, tensorboard=tmp_path)
    result = finetune(net(1), net(0), images_of(), config, name="run")
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    tags: dict[str, Any] = events.Tags()
    assert {"loss", "lr", "images/s", "held-out score"} <= set(tags["scalars"])
    assert len(events.Scalars("loss")) == result.steps
    scores = [event.value for event in events.Scalars("held-out score")]
    assert scores == pytest.approx([entry["score"] for entry in result.history])


def test_the_weights_it_came_with_may_be_ruled_out() -> None:
    scores = iter([0.9, 0.1, 0.2, 0.1])
    result = finetune(
        net(1), net(0), images_of(), FinetuneConfig(3, may_stay=False), score=lambda m: next(scores)
    )
    assert result.best_epoch == 2
    assert not math.isnan(result.seconds)
