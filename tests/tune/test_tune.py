"""Fine-tuning: its loss, its steps, and which weights are kept."""

import copy
import math
import os
import threading
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from tuning import dataset, equal, net

from factorize.data.images import Shuffled
from factorize.errors import DataError
from factorize.tune import FinetuneConfig, finetune
from factorize.tune.distance import distance
from factorize.tune.guard import accelerator_on
from factorize.tune.optimizer import _cosine

pytestmark = pytest.mark.usefixtures("one_thread")


# --- the loss --------------------------------------------------------------------------------


def test_distance_of_logits_is_the_scaled_kl_divergence():
    s, t = torch.randn(5, 7), torch.randn(5, 7)
    p, q = (torch.softmax(v / 3, 1) for v in (t, s))
    want = 9 * (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(distance([s], [t], temperature=3.0), want)
    assert distance([t], [t]).item() == pytest.approx(0, abs=1e-7)


def test_distance_of_other_outputs_is_the_relative_squared_error():
    t = torch.randn(2, 3, 4, 4)
    assert distance([t * 1.1], [t]).item() == pytest.approx(0.01, rel=1e-4)
    assert distance([t * 100 * 1.1], [t * 100]).item() == pytest.approx(0.01, rel=1e-4)
    one = torch.randn(8, 1)  # no distribution over one class
    assert distance([one + 1], [one]).item() > 0
    assert distance([t * 1.1, one], [t]).item() == pytest.approx(0.01, rel=1e-4)


def test_schedule_warms_up_and_falls_to_zero():
    values = [_cosine(step, 100, 0.05) for step in range(100)]
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert values[5] == 1
    assert values[5:] == sorted(set(values[5:]), reverse=True)
    assert 0 < values[-1] < 0.001


# --- fine-tuning -----------------------------------------------------------------------------


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("loader", [True, False])
def test_finetuning_comes_closer_and_touches_only_the_student(labelled, loader):
    original, model = net(0), net(1)
    original.train()
    model.eval()
    teacher = copy.deepcopy(original)
    data = dataset(labelled=labelled, loader=loader)
    result = finetune(model, original, data, FinetuneConfig(4, lr=1e-2), score=None)
    assert equal(original, teacher)
    assert original.training
    assert not model.training
    assert all(p.grad is None for p in original.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert [h["epoch"] for h in result.history] == [0, 1, 2, 3, 4]
    assert (result.steps, result.epochs_done, result.interrupted) == (24, 4.0, False)
    assert result.history[-1]["loss"] < result.history[1]["loss"]
    if not labelled:
        assert result.history[-1]["distance"] < result.history[0]["distance"]
        assert all(h["score"] == -h["distance"] for h in result.history)
    assert (result.device, result.mixed_precision, result.stopped) == ("cpu", "no", None)


def test_start_is_epoch_zero_and_survives_a_useless_run():
    original = net(0, dropout=0).eval()
    model = copy.deepcopy(original)
    with torch.no_grad():
        model[-1].weight += 0.01
    start = copy.deepcopy(model)
    result = finetune(
        model, original, dataset(labelled=False), FinetuneConfig(2, lr=10.0, max_grad_norm=1e9)
    )
    assert result.best_epoch == 0
    assert equal(model, start)


def test_the_best_epoch_wins_not_the_last():
    original, model = net(0), net(1)
    scores = iter([0.1, 0.9, 0.5])
    seen = []

    def score(m):
        seen.append(copy.deepcopy(m.state_dict()))
        return next(scores)

    result = finetune(model, original, dataset(), FinetuneConfig(2), score=score)
    assert result.best_epoch == 1
    assert all(torch.equal(v, seen[1][k]) for k, v in model.state_dict().items())


def test_nonfinite_loss_stops_and_keeps_the_best():
    original, model = net(0), net(1)
    data = dataset(loader=False)
    data.train[4][0][0, 0, 0, 0] = float("nan")
    start = copy.deepcopy(model)
    result = finetune(model, original, data, FinetuneConfig(2))
    assert "step 5" in result.stopped
    assert result.steps == 4
    assert equal(model, start)


def test_finetuning_outside_of_the_main_thread():
    results = []
    thread = threading.Thread(
        target=lambda: results.append(
            finetune(net(1), net(0), dataset(count=32), FinetuneConfig(1))
        )
    )
    thread.start()
    thread.join()
    assert results[0].steps == 2


def test_nothing_of_the_process_is_changed():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    environment = dict(os.environ)
    data, original, model = dataset(count=32), net(0), net(1)
    generator = torch.get_rng_state()
    with accelerator_on("cpu"):
        AcceleratorState._reset_state(True)
        users = Accelerator(cpu=True, mixed_precision="bf16")
        state = dict(AcceleratorState._shared_state)
        result = finetune(model, original, data, FinetuneConfig(1))
        assert dict(AcceleratorState._shared_state) == state
        assert (users.mixed_precision, result.mixed_precision) == ("bf16", "no")
    assert PartialState._shared_state == {}
    assert torch.equal(torch.get_rng_state(), generator)
    changed = {key for key, _ in dict(os.environ).items() ^ environment.items()}
    assert changed <= {"TORCHINDUCTOR_CACHE_DIR"}  # torch's own, set with the first optimizer
    assert data.train.sampler.generator is None


def test_loss_and_clipping_are_as_configured():
    original, model = (nn.Sequential(nn.Flatten(), nn.Linear(192, 4)) for _ in range(2))
    data = dataset(loader=False)
    images, labels = (torch.cat(parts) for parts in zip(*data.train, strict=True))
    with torch.no_grad():
        student, teacher = model(images), original(images)
        want = distance([student], [teacher], temperature=3.0) + 0.5 * nn.functional.cross_entropy(
            student, labels
        )
    config = FinetuneConfig(
        1, temperature=3.0, label_weight=0.5, max_grad_norm=1e-12, weight_decay=0
    )
    start, scores = copy.deepcopy(model), iter([0.0, 1.0])
    result = finetune(model, original, data, config, score=lambda m: next(scores))
    assert result.best_epoch == 1
    assert result.history[1]["loss"] == pytest.approx(float(want), rel=1e-5)
    assert torch.allclose(model[1].weight, start[1].weight, atol=1e-6)  # clipped to nothing


def test_steps_follow_the_schedule():
    model = net(1, dropout=0)
    weights = [model[0].weight.detach().clone()]
    finetune(
        model,
        net(0),
        dataset(),
        FinetuneConfig(1, lr=1e-3, weight_decay=0),
        progress=lambda *_: weights.append(model[0].weight.detach().clone()),
    )
    moves = [float((b - a).abs().max()) for a, b in pairwise(weights)]
    assert moves[0] == pytest.approx(1e-3, rel=0.01)  # Adam's first step is the learning rate
    assert moves[-1] < 0.3e-3


@pytest.mark.parametrize(
    "numbers", [{"lr": 0.0}, {"lr": -1.0}, {"lr": math.nan}, {"lr": math.inf}, {"epochs": -1}]
)
def test_numbers_no_run_can_have(numbers):
    with pytest.raises(DataError, match=f"{next(iter(numbers))}: .* got") as caught:
        FinetuneConfig(**{"epochs": 1, **numbers})
    assert "\n" not in str(caught.value)


def test_the_largest_seed():
    sampler = Shuffled(32, 2**63 - 1)
    data = dataset(count=32)
    data = replace(data, train=DataLoader(data.train.dataset, batch_size=16, sampler=sampler))
    result = finetune(net(1), net(0), data, FinetuneConfig(2, seed=2**63 - 1))
    assert result.steps == 4
    assert sampler.epoch == 0
