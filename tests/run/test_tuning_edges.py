"""Batches, weights and recipes that fine-tuning meets at its edges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)
from typer.testing import CliRunner

import factorize
from factorize.cli import command as cli
from factorize.errors import DataError
from factorize.tune import FinetuneConfig, finetune
from factorize.tune.checkpoint import snapshot
from factorize.tune.optimizer import Average
from factorize.types import Data

X = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(48) % 4
PAIRS = TensorDataset(X, Y)


class Stream(IterableDataset[Any]):
    def __len__(self) -> int:
        return len(X)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return iter(PAIRS[at] for at in range(len(X)))


LOADERS: dict[str, Callable[[], Any]] = {
    "of a stream": lambda: DataLoader(Stream(), 16),
    "with a batch sampler": lambda: DataLoader(
        PAIRS, batch_sampler=BatchSampler(RandomSampler(PAIRS), 16, False)
    ),
}


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))  # fmt: skip


def data(train: Any = None, labelled: bool = True, classes: int = 4) -> Data:
    train = DataLoader(PAIRS, 16, shuffle=True) if train is None else train
    return Data(train, [(X, Y)], None, labelled, classes, "random images")


def tuned(one: Data, config: FinetuneConfig, **options: Any) -> tuple[dict[str, Any], Any]:
    model = net(1)
    result = finetune(model, net(0), one, config, **options)
    return model.state_dict(), result


@pytest.mark.parametrize(
    ("train", "steps"),
    [
        (DataLoader(PAIRS, 1), 47),  # a last batch of one is left out
        ([(X[:16], Y[:16]), (X[:1], Y[:1]), (X[16:], Y[16:])], 3),
        ([(X[:16], Y[:16]), (X[:1], Y[:1])], 1),
        ([(X[:1], Y[:1])], 1),
    ],
)
def test_a_batch_of_one_image_is_no_end(train: Any, steps: int) -> None:
    assert tuned(data(train), FinetuneConfig(1))[1].steps == steps


@pytest.mark.parametrize("kind", LOADERS)
def test_any_loader_resumes_to_the_bit(tmp_path: Path, kind: str) -> None:
    def pressed(*_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == 5:
            raise KeyboardInterrupt

    seen, path = 0, tmp_path / "run.ckpt"
    scored = {"score": lambda model: next(rising)}
    rising = iter(range(100))
    whole, _ = tuned(data(LOADERS[kind]()), FinetuneConfig(3), **scored)
    cut = FinetuneConfig(3, checkpoint=path)
    assert tuned(data(LOADERS[kind]()), cut, progress=pressed, **scored)[1].interrupted
    torch.manual_seed(5)
    resumed, _ = tuned(
        data(LOADERS[kind]()), FinetuneConfig(3, checkpoint=path, resume=True), **scored
    )
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_parts_have_two_images_at_least() -> None:
    def headed(seed: int) -> nn.Module:
        return nn.Sequential(net(seed), nn.BatchNorm1d(4))  # needs two values per channel

    config = FinetuneConfig(1, micro_batches=8)
    result = finetune(headed(1), headed(0), data(DataLoader(PAIRS, 13)), config)
    assert result.steps == 4


def test_averages_of_a_shared_weight_are_exchanged_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    average = Average(model, 0.9)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    raw = model[0].weight.detach().clone()
    average.swap()
    assert torch.allclose(model[0].weight, raw - 1)
    average.swap()
    assert torch.equal(model[0].weight, raw)


def test_fixed_batch_norms_keep_their_statistics() -> None:
    before = net(1).state_dict()
    after = {norm: tuned(data(), FinetuneConfig(1, batch_norm=norm, may_stay=False))[0]
             for norm in ("fixed", "batch", "auto")}  # fmt: skip
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(before[name], after["fixed"][name])
        assert not torch.equal(before[name], after["batch"][name])
    assert not torch.equal(before["1.weight"], after["fixed"]["1.weight"])
    assert all(map(torch.equal, after["auto"].values(), after["batch"].values()))


@pytest.mark.parametrize(("asked", "taken"), [("auto", "fixed"), ("batch", "batch")])
def test_statistics_that_were_not_better_are_left_alone_in_tuning(asked: str, taken: str) -> None:
    original = net(0).eval()  # its statistics are not those of these images
    result = factorize.compress(
        original, X[:1], rank=6, method="channel_svd", include=("0",), data=data(),
        finetune=FinetuneConfig(1, batch_norm=asked), latency=False, device="cpu",
    )  # fmt: skip
    report = result.report
    assert report.recalibration is not None
    assert not report.recalibration["applied"]
    for one in (report.finetuning, report.control):
        assert one is not None
        assert one["batch_norm"] == taken


def test_a_snapshot_keeps_the_versions_of_modules() -> None:
    model = net(0)  # torchvision's MNASNet does not load without
    assert snapshot(model)._metadata == model.state_dict()._metadata  # type: ignore[attr-defined]


@pytest.mark.parametrize("one", [data(classes=7), data([(X,)], labelled=False)])
def test_nothing_to_learn_from_is_told(one: Data) -> None:
    with pytest.raises(DataError, match="label_weight: must have labels"):
        tuned(one, FinetuneConfig(1, logit_weight=0.0))


@pytest.mark.parametrize("setting", ["mixup", "cutmix"])
def test_only_images_are_mixed(setting: str) -> None:
    rows = [(torch.randn(8, 6), Y[:8])]
    one = Data(rows, rows, None, True, 4, "rows")
    config = FinetuneConfig(1, **{setting: 1.0})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="mixup: images must be"):
        finetune(nn.Linear(6, 4), nn.Linear(6, 4), one, config)


@pytest.mark.parametrize(("given", "seed"), [([], 5), (["--seed", "3"], 3)])
def test_a_recipes_seed_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], seed: int
) -> None:
    def compress(*_: Any, finetune: FinetuneConfig, **__: Any) -> None:
        seen.append(finetune.seed)
        raise KeyboardInterrupt

    seen: list[int] = []
    recipe = tmp_path / "recipe.json"
    recipe.write_text('{"seed": 5, "epochs": 1}')
    monkeypatch.setattr(cli, "compress", compress)
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(cli.app, ["digits", "--rank", "8", "--recipe", str(recipe), *given])
    assert seen == [seed]
