"""The passes of a fit: what they hold, what they tell, and what they leave behind."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import paused_passes
from fitting import Dense, Plain, Residual, Twice, batches, calibration, images, made, plan_of
from torch import Tensor, nn

from factorize.errors import DataError
from factorize.fit import fit_outputs, fit_sequential, fit_weights
from factorize.fit import sequential as sequential_module
from factorize.fit.lockstep import Lockstep

pytestmark = pytest.mark.usefixtures("no_pass_is_left")


@pytest.mark.parametrize("kind", [Plain, Residual, Twice])
@pytest.mark.parametrize("memory", [0.0, 4e5])
def test_little_memory_takes_longer_and_gives_the_same(
    kind: type[nn.Module], memory: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = made(kind), images()
    plan = plan_of(model)
    runs = []
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: (runs.append(len(x)), forward(self, x))[1])
    whole = fit_sequential(model, plan, batches(x))
    at_once = len(runs)
    low = fit_sequential(model, plan, batches(x), memory=memory)
    assert len(runs) - at_once > at_once
    for name, one in whole.layers.items():
        two = low.layers[name]
        assert (one.error, one.held_out_error) == (two.error, two.held_out_error)
        assert all(torch.equal(a, b) for a, b in zip(one.weights, two.weights, strict=True))
    assert all(torch.equal(whole.means[name], low.means[name]) for name in low.means)


@pytest.mark.parametrize("kind", [Plain, Residual, Dense])
@pytest.mark.parametrize("place", [0, 1, -1])
def test_plans_are_fitted_from_the_first_layer_on_in_which_they_differ(
    kind: type[nn.Module], place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, fits = made(kind), images(), []
    fit_one = sequential_module.fit_layer
    monkeypatch.setattr(
        sequential_module,
        "fit_layer",
        lambda *a, **k: (fits.append(a[0].spec.name), fit_one(*a, **k))[1],
    )
    plan, known = plan_of(model), {}
    order = [*fit_sequential(model, plan, batches(x), known=known).layers]
    changed = order[place]
    other = replace(plan, layers=tuple(
        replace(one, rank=(1,)) if one.spec.name == changed else one for one in plan.layers
    ))  # fmt: skip
    alone = fit_sequential(model, other, batches(x))
    fits.clear()
    shared = fit_sequential(model, other, batches(x), known=known)
    assert fits == order[order.index(changed) :]
    for name, one in alone.layers.items():
        two = shared.layers[name]
        assert (one.error, one.held_out_error) == (two.error, two.held_out_error)
        assert all(torch.equal(a, b) for a, b in zip(one.weights, two.weights, strict=True))
    assert alone.means.keys() == shared.means.keys()
    assert all(torch.equal(mean, shared.means[name]) for name, mean in alone.means.items())


def test_activations_held_by_a_paused_batch_are_counted() -> None:
    model, x = made(Plain), images(1)
    with Lockstep(model, {"first": model.get_submodule("first")}, [x], 0.0) as lockstep:
        held = lockstep._held_per_image()
    inputs, output = 2 * 6, 8  # of both networks, of the original
    assert held == [(inputs + output) * 12 * 12 * 8]  # in float64


def test_a_fitted_layer_sees_the_original_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, rows = made(Plain), images(), []
    layer = model.get_submodule("first")
    chain, forward = copy.deepcopy(layer), layer.forward
    monkeypatch.setattr(layer, "forward", lambda x: (rows.append(len(x)), forward(x))[1])
    with Lockstep(model, {"first": layer}, batches(x), 2e9) as lockstep:
        rows.clear()  # of the look at what is held
        while lockstep.next() is not None:
            arrived = sum(len(arrival.original) for arrival in lockstep.arrivals())
            lockstep.decide(chain)
    assert sum(rows) == arrived == len(x)


def test_batches_start_anew_only_where_layers_hold_too_much() -> None:
    wide = nn.Conv2d(3, 64, 3, padding=1)
    narrow = [nn.Conv2d(64, 4, 3, stride=4), *(nn.Conv2d(4, 4, 1) for _ in range(5))]
    model = nn.Sequential(wide, *narrow)
    starts = []
    model.register_forward_pre_hook(lambda *_: starts.append(1))
    layers = {name: module for name, module in model.named_children() if name}
    x = [torch.randn(2, 3, 16, 16) for _ in range(4)]
    room = 5 * 4 * (2 * 64 * 16 * 16 + 4 * 4 * 4)  # for two batches where most is held
    with Lockstep(model, layers, x, room) as lockstep:
        while lockstep.next() is not None:
            assert [arrival.batch for arrival in lockstep.arrivals()] == [0, 1, 2, 3]
            lockstep.decide(None)
    # One to see what is held, four batches, and two of them again after each of the first two.
    assert len(starts) == 1 + 4 + 2 + 2


def state(model: nn.Module) -> list[Any]:
    """All that a fit might leave behind in a model."""
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), m.training)
        for m in model.modules()
    ]
    return [*hooks, *((n, v._version, v.sum().item()) for n, v in model.state_dict().items())]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("where", ["fit", "sums", "forward", "example", "open"])
@pytest.mark.parametrize("memory", [0.0, 2e9])
def test_model_is_not_changed_whatever_happens(
    error: type[BaseException] | None, where: str, memory: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = made(Residual), images()
    model.train()
    model.convs[2].eval()
    before, flags = copy.deepcopy(model.state_dict()), state(model)
    plan = plan_of(model)

    def failing(function: Callable[..., Any], when: Callable[..., bool]) -> Callable[..., Any]:
        count = [0]

        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if error and when(count[0], args):
                raise error("stop here")
            return function(*args, **kwargs)

        return call

    target, name, when = {
        "fit": (sequential_module, "fit_layer", lambda count, args: count == 3),
        "sums": (sequential_module.MomentSums, "add", lambda count, args: count == 12),
        "forward": (Residual, "forward", lambda count, args: len(args[1]) == 26),
        "example": (Residual, "forward", lambda count, args: len(args[1]) == 2),
        "open": (sequential_module.Lockstep, "_start", lambda count, args: count == 2),
    }[where]
    monkeypatch.setattr(target, name, failing(getattr(target, name), when))
    if error is None:
        fit_sequential(model, plan, batches(x), memory=memory)
    else:
        with pytest.raises((error, DataError)):
            fit_sequential(model, plan, batches(x), memory=memory)
    assert not paused_passes()
    assert state(model) == flags
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("memory", [0.0, 2e9])
def test_modes_that_the_model_switches_on_stay_in_the_model(memory: float) -> None:
    class Inference(Plain):
        @torch.inference_mode()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    class Cast(Plain):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu"):
                return super().forward(x)

    for kind in (Inference, Cast):
        model = made(kind).float()
        before = state(model)
        x = images().float()
        fitted = fit_sequential(model, plan_of(made(Plain)), batches(x), memory=memory)
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")
        assert torch.is_grad_enabled()
        weights = [weight for found in fitted.layers.values() for weight in found.weights]
        assert not any(weight.is_inference() for weight in weights)
        assert state(model) == before


@pytest.mark.parametrize("way", ["weights", "outputs", "sequential"])
def test_progress_counts_the_layers(way: str) -> None:
    model, x = made(Twice), images()
    plan, told = plan_of(model), []

    def progress(stage: str, done: int, total: int, values: dict[str, float]) -> None:
        told.append((stage, done, total))

    if way == "weights":
        fit_weights(model, plan, progress=progress)
    elif way == "outputs":
        fit_outputs(model, plan, calibration(model, plan, x), progress=progress)
    else:
        fit_sequential(model, plan, batches(x), progress=progress)
    assert told[-1] == ("factorize", 3, 3)
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})
