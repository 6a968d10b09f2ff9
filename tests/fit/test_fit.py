"""Fits of whole networks, held to what the networks compute when they are run."""

import copy
from dataclasses import replace
from typing import Any

import convolutions
import pytest
import torch
from fitting import (
    Dense,
    Plain,
    Residual,
    Twice,
    batches,
    calibration,
    calls,
    images,
    made,
    measured,
    output,
    parts,
    plan_of,
)
from torch import Tensor, nn

import factorize
from factorize.fit import Fitted, apply_, fit_outputs, fit_sequential, fit_weights
from factorize.types import Plan

pytestmark = pytest.mark.usefixtures("no_pass_is_left")

ALL = convolutions.square()
SHORTCUTS = {"convs.3": ("convs.4", "norms.3"), "convs.1": ("convs.2", "")}
"""Of `Residual`: the last layer of a branch, the first one that reads the other, the norm."""


class Branches(nn.Module):
    """Two branches, joined, and two outputs beside a number that is of no image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(6, 8, 3, bias=False)
        self.left, self.right = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 6, (1, 5), 1, (0, 2))
        self.top = nn.Conv2d(12, 8, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = torch.relu(self.stem(x))
        both = torch.cat((torch.relu(self.right(x)), torch.tanh(self.left(x))), 1)
        return {"map": self.top(both), "mean": both.mean((1, 2, 3)), "scale": torch.tensor(2.0)}


class Tied(nn.Module):
    """Two modules with one weight and a bias each, on maps of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.two.weight = self.one.weight
        self.top = nn.Conv2d(6, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(torch.relu(self.two(nn.functional.avg_pool2d(self.one(x), 2) + 1)))


class Deep(nn.Sequential):
    """Eight layers."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for index in range(8):
            layers += [nn.Conv2d(6 if index == 0 else 10, 10, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(10), nn.ReLU()]
        super().__init__(*layers)


def joined(maps: list[Tensor]) -> Tensor:
    """Maps of several sizes as one, (1, O, 1, positions)."""
    return torch.cat([y.detach().movedim(1, 0).flatten(1) for y in maps], 1)[None, :, None]


NETS = [Plain, Residual, Dense, Branches]
every_net = pytest.mark.parametrize("kind", NETS)


@every_net
@pytest.mark.parametrize("method", ["spatial_svd", "cp"])
def test_errors_of_outputs_are_those_of_the_chains_when_run(
    kind: type[nn.Module], method: str
) -> None:
    model, x = made(kind), images()
    plan = plan_of(model, method)
    fitted = fit_outputs(model, plan, calibration(model, plan, x))
    assert list(fitted.layers) == [layer.spec.name for layer in plan.factorized]
    net = apply_(copy.deepcopy(model), fitted)
    for name, found in fitted.layers.items():
        chain, bias = net.get_submodule(name), found.spec.bias
        for part, error in zip(parts(x), (found.error, found.held_out_error), strict=True):
            ((inputs, wanted),) = calls(model, name, part)
            assert error == pytest.approx(measured(wanted, output(chain, inputs), bias), rel=1e-6)
            assert 1e-4 < error < 1
        if bias:
            ((inputs, wanted),) = calls(model, name, parts(x)[0])
            mean = output(chain, inputs).mean((0, 2, 3))
            assert torch.allclose(mean, wanted.mean((0, 2, 3)), atol=1e-9)


def wanted_in_sequence(model: nn.Module, net: nn.Module, name: str, x: Tensor) -> Tensor:
    """The original's output; before a shortcut, what makes up for the shortcut's loss too."""
    ((_, wanted),) = calls(model, name, x)
    source, norm = SHORTCUTS.get(name, ("", ""))
    if not (source and isinstance(model, Residual)):
        return wanted
    ((original, _),), ((compressed, _),) = calls(model, source, x), calls(net, source, x)
    lost = original - compressed
    if norm:  # undone
        module = model.get_submodule(norm)
        gain = module.weight / (module.running_var + module.eps).sqrt()
        lost = lost / gain.detach()[:, None, None]
    return wanted + lost


@every_net
@pytest.mark.parametrize("method", ["spatial_svd", "cp"])
def test_errors_of_sequential_are_those_in_the_compressed_net(
    kind: type[nn.Module], method: str
) -> None:
    model, x = made(kind), images()
    plan = plan_of(model, method)
    fitted = fit_sequential(model, plan, batches(x))
    assert set(fitted.layers) == {layer.spec.name for layer in plan.factorized}
    net = apply_(copy.deepcopy(model), fitted)
    for name, found in fitted.layers.items():
        for part, error in zip(parts(x), (found.error, found.held_out_error), strict=True):
            wanted, ((_, actual),) = (
                wanted_in_sequence(model, net, name, part),
                calls(net, name, part),
            )
            assert error == pytest.approx(measured(wanted, actual, found.spec.bias), rel=1e-6), name


@every_net
def test_sequential_hands_on_the_means_of_the_original(kind: type[nn.Module]) -> None:
    model, x = made(kind), images()
    fitted = fit_sequential(model, plan_of(model), batches(x))
    net, (fit, _) = apply_(copy.deepcopy(model), fitted), parts(x)
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert set(fitted.means) == norms
    corrected = [n for n, found in fitted.layers.items() if found.spec.bias]
    assert corrected
    for name in (*corrected, *norms):
        wanted, ((_, actual),) = wanted_in_sequence(model, net, name, fit), calls(net, name, fit)
        assert torch.allclose(actual.mean((0, 2, 3)), wanted.mean((0, 2, 3)), atol=1e-9), name
        assert not torch.allclose(actual, wanted, atol=1e-3)


@pytest.mark.parametrize("method", ALL)
def test_each_way_of_fitting_beats_the_one_that_knows_less(method: str) -> None:
    model, x = made(Deep), images(60)
    plan = plan_of(model, method, 0.2)
    by_weights = fit_weights(model, plan)
    by_outputs = fit_outputs(model, plan, calibration(model, plan, x))
    by_sequence = fit_sequential(model, plan, batches(x))
    new = images(30, seed=5)
    errors = []
    for fitted in (by_weights, by_outputs, by_sequence):
        net = apply_(copy.deepcopy(model), fitted)
        errors.append(measured(output(model, new), output(net, new), bias=False))
    assert errors[1] < errors[0]
    assert errors[2] < errors[1]


def test_sequential_of_one_layer_is_the_fit_of_its_output() -> None:
    model, x = made(Plain), images()
    plan = factorize.make_plan(model, x[:2], rank=0.25, include=["first"], allow_costlier=True)
    plan = Plan(tuple(layer for layer in plan.layers if layer.spec.name == "first"), {})
    one = fit_outputs(model, plan, calibration(model, plan, x)).layers["first"]
    two = fit_sequential(model, plan, batches(x)).layers["first"]
    assert two.error == pytest.approx(one.error, rel=1e-6)
    assert two.held_out_error == pytest.approx(one.held_out_error, rel=1e-6)
    assert one.bias is not None
    assert two.bias is not None
    assert torch.allclose(one.bias, two.bias, atol=1e-6)


@pytest.mark.parametrize("name", ["2", "3"])
def test_sequential_of_other_axes_is_the_fit_of_the_output(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(6, 6, 1), nn.Flatten(2), nn.Conv1d(6, 8, 3), nn.Linear(142, 5)
    ).double()
    x = images()
    plan = factorize.make_plan(
        model, x[:2], rank=2, method="channel_svd", include=[name], allow_costlier=True
    )
    one = fit_outputs(model, plan, calibration(model, plan, x)).layers[name]
    two = fit_sequential(model, plan, batches(x)).layers[name]
    assert two.error == pytest.approx(one.error, rel=1e-6)
    assert two.bias is not None
    assert torch.allclose(one.bias, two.bias, atol=1e-6)


def fits(model: nn.Module, plan: Plan, x: Tensor) -> dict[str, Fitted]:
    return {
        "outputs": fit_outputs(model, plan, calibration(model, plan, x)),
        "sequential": fit_sequential(model, plan, batches(x)),
    }


@pytest.mark.parametrize("way", ["outputs", "sequential"])
def test_module_called_twice_is_fitted_to_the_sum_of_its_uses(way: str) -> None:
    model, x = made(Twice), images()
    plan = plan_of(model)
    fitted = fits(model, plan, x)[way]
    found = fitted.layers["again"]
    chain = apply_(copy.deepcopy(model), fitted).get_submodule("again")
    for part, error in zip(parts(x), (found.error, found.held_out_error), strict=True):
        uses = calls(model, "again", part)
        assert len(uses) == 2
        y = joined([out for _, out in uses])
        y2 = joined([output(chain, inputs) for inputs, _ in uses])
        assert error == pytest.approx(measured(y, y2, bias=True), rel=1e-6)
        if part is parts(x)[0]:
            assert torch.allclose(y.mean(3), y2.mean(3), atol=1e-9)
    if way == "sequential":  # what comes after is fitted to what the net with it hands on
        net, top = apply_(copy.deepcopy(model), fitted), fitted.layers["top"]
        ((_, wanted),), ((_, actual),) = (calls(m, "top", parts(x)[0]) for m in (model, net))
        assert top.error == pytest.approx(measured(wanted, actual, bias=True), rel=1e-6)


@pytest.mark.parametrize("way", ["outputs", "sequential"])
def test_modules_of_one_weight_stay_tied(way: str) -> None:
    model, x = made(Tied), images()
    fitted = fits(model, plan_of(model), x)[way]
    one, two = fitted.layers["one"], fitted.layers["two"]
    assert all(torch.equal(a, b) for a, b in zip(one.weights, two.weights, strict=True))
    net = apply_(copy.deepcopy(model), fitted)
    for a, b in zip(net.get_submodule("one"), net.get_submodule("two"), strict=True):
        assert a.weight is b.weight
    wanted, actual = [], []
    for name in ("one", "two"):  # each without the bias that it had
        ((inputs, out),) = calls(model, name, parts(x)[0])
        bias = model.get_submodule(name).bias[:, None, None]
        wanted.append(out - bias)
        actual.append(output(net.get_submodule(name), inputs) - bias)
    error = measured(joined(wanted), joined(actual), bias=True)
    assert one.error == two.error == pytest.approx(error, rel=1e-6)
    assert net.one[-1].bias is not net.two[-1].bias


def test_of_all_orders_the_one_that_loses_least_is_kept() -> None:
    """Whichever of them was planned."""
    model = made(Plain)
    x, plan = images(), plan_of(model)
    moments = calibration(model, plan, x)
    fixed = [
        fit_outputs(model, replace(plan, layers=tuple(_ordered(plan, variant))), moments)
        for variant in ("vertical_first", "horizontal_first")
    ]
    names = [layer.spec.name for layer in plan.factorized]
    least = {name: min(one.layers[name].error for one in fixed) for name in names}
    # Each order is the better one of some layer, so that no order kept blindly would do.
    for planned in fixed:
        assert any(planned.layers[name].error > least[name] * 1.001 for name in names)
    for variant in ("vertical_first", "horizontal_first"):
        given = replace(plan, layers=tuple(_ordered(plan, variant)))
        kept = fit_outputs(model, given, moments, any_order=True)
        for name in names:
            assert kept.layers[name].error == pytest.approx(least[name], rel=1e-6)


def _ordered(plan: Plan, variant: str) -> list[Any]:
    return [replace(one, variant=variant) if one.method else one for one in plan.layers]
