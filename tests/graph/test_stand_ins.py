"""Layers of which the model asks what they are: found by running it, and left as they are."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rewriting import X, assert_same_function, conv, full
from torch import nn
from torch.nn.utils import parametrizations

import factorize
from factorize.graph import stand_ins


@dataclass
class Output:
    values: torch.Tensor


Forward = Callable[[Any, torch.Tensor], Any]


def net(forward: Forward, count: int = 3) -> nn.Module:
    """Some convolutions under ``layers`` and what is to be done with them."""
    model = nn.Module()
    model.layers = nn.ModuleList(conv() for _ in range(count))
    model.forward = lambda x: forward(model, x)  # type: ignore[method-assign]
    return model


class Asking(nn.Module):
    """Treats its convolutions otherwise than what is none, as some ask for."""

    def __init__(self, asks: Callable[[nn.Module], bool], count: int = 4) -> None:
        super().__init__()
        self.asks = asks
        self.layers = nn.ModuleList(conv() for _ in range(count))
        self.asked = {1}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in self.asked and not self.asks(layer):
                x = 0.86 * x
        return x


def is_type(layer: nn.Module) -> bool:
    return type(layer) is nn.Conv2d


def is_instance(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d)


def lacks_length(layer: nn.Module) -> bool:
    return not hasattr(layer, "__len__")


def blocked(model: nn.Module, x: Any = X) -> dict[str, str]:
    return {s.spec.name: s.blocked for s in factorize.find(model, x) if s.blocked}


@pytest.mark.parametrize("asks", [is_type, is_instance, lacks_length])
@pytest.mark.parametrize("asked", [{0}, {2}, {0, 3}, {0, 1, 2, 3}, set()], ids=str)
def test_layer_whose_type_decides_stays_and_the_others_are_replaced(
    asks: Callable[[nn.Module], bool], asked: set[int]
) -> None:
    model = Asking(asks)
    model.asked = asked
    told = blocked(model)
    assert set(told) == {f"layers.{number}" for number in asked}
    assert all("asks what this layer is" in reason for reason in told.values())
    plan = full(model)
    assert len(plan.factorized) == 4 - len(asked)
    assert_same_function(model, factorize.rewrite(model, plan))


def test_layers_that_matter_only_together_are_found() -> None:
    """One of them may go, not all."""

    def forward(model: Any, x: torch.Tensor) -> torch.Tensor:
        scale = 1.0 if any(map(is_instance, model.layers)) else 3.0
        return scale * model.layers[2](model.layers[1](model.layers[0](x)))

    model = net(forward)
    assert set(blocked(model)) == {"layers.2"}
    assert_same_function(model, factorize.rewrite(model, full(model)))


def test_what_a_chain_has_not_is_told_by_its_error() -> None:
    model = net(lambda m, x: m.layers[1](m.layers[0](x)) * m.layers[0]._get_name().index("Conv"))
    reason = blocked(model)["layers.0"]
    assert reason.endswith("does not run with a chain: ValueError: substring not found")


def test_reason_that_the_walker_has_already_stays() -> None:
    model = net(lambda m, x: m.layers[1](m.layers[0](x)) / m.layers[0].out_channels)
    assert blocked(model)["layers.0"].startswith("the model reads its out_channels")


@pytest.mark.parametrize(
    "hidden",
    [
        lambda model: list(model.layers),
        lambda model: [one.forward for one in model.layers],
        lambda model: [lambda x, one=one: one(x) for one in model.layers],
    ],
    ids=["list", "bound methods", "closures"],
)
def test_layer_that_is_held_elsewhere_stays(hidden: Callable[[Any], list[Any]]) -> None:
    model = net(lambda m, x: m.layers[1](held[0](x)), count=2)
    held = hidden(model)
    told = blocked(model)
    assert set(told) == {"layers.0"}


def test_every_kind_of_layer_may_be_in_a_chain() -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 12, (3, 1), 2, (1, 2), (2, 1), 4, padding_mode="reflect"),
        nn.ConvTranspose2d(12, 6, 3, 2, 1, 1, groups=3),
        parametrizations.weight_norm(conv_of(6, 4)),
        parametrizations.spectral_norm(conv_of(4, 4)),
        nn.Flatten(2),
        nn.Conv1d(4, 4, 3, padding="same", bias=False),
        nn.Unflatten(1, (4, 1)),
        nn.Flatten(2),
        nn.Linear(112, 5),
    ).to(memory_format=torch.channels_last)
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    assert blocked(model) == {}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def conv_of(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def test_looking_leaves_all_in_its_place() -> None:
    model = Asking(is_instance)
    layers, flags = list(model.layers), [m.training for m in model.modules()]
    model.layers[2].eval()
    generator = torch.random.get_rng_state()
    x = X.clone().requires_grad_()
    factorize.find(model, x)
    assert [a is b for a, b in zip(layers, model.layers, strict=True)] == [True] * 4
    assert [type(layer) for layer in model.layers] == [nn.Conv2d] * 4
    assert [m.training for m in model.modules()] == [*flags[:4], False, *flags[5:]]
    assert torch.equal(generator, torch.random.get_rng_state())
    assert not any(layer._forward_pre_hooks for layer in model.layers)
    assert x.grad is None


def test_usual_cost_is_two_runs_more_and_culprits_are_searched_by_halves() -> None:
    model = Asking(is_instance, count=16)
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    model.register_forward_pre_hook(count)
    model.asked = set()
    factorize.find(model, X)
    assert runs == 3
    model.asked, runs = {5}, 0
    assert set(blocked(model)) == {"layers.5"}
    assert runs <= 3 + 1 + 2 * 4  # once more for its noise, two for each time the layers are halved


@pytest.mark.parametrize(
    "drawn",
    [
        lambda m, x: F.dropout(m.layers[0](x), training=True),
        lambda m, x: m.layers[0](x) + torch.randn(8, 1, 1),
        lambda m, x: m.layers[0](x) * random.random(),
        lambda m, x: next(m.drawn) * m.layers[0](x),
    ],
    ids=["dropout", "noise", "another generator", "state"],
)
def test_chance_is_not_taken_for_a_difference(drawn: Forward) -> None:
    random.seed(0)  # two runs may be closer by luck than two others
    model = net(drawn, count=1)
    model.drawn = iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert blocked(model) == {}


def test_difference_beyond_that_of_chance_is_told() -> None:
    def forward(model: Any, x: torch.Tensor) -> torch.Tensor:
        (layer,) = model.layers
        return layer(x) * (1 + 1e-4 * random.random()) * (1 if is_instance(layer) else 0.86)

    assert set(blocked(net(forward, count=1))) == {"layers.0"}


def test_model_that_runs_but_once_is_not_compared() -> None:
    model = net(lambda m, x: next(m.once) * m.layers[0](x), count=1)
    model.once = iter([1.0])
    assert blocked(model) == {}


@pytest.mark.parametrize(
    "output",
    [
        lambda y: y,
        lambda y: {"a": [y], "b": (None, "text")},
        lambda y: (y.argmax(1), y > 0),
        lambda y: y.mean().item(),
        lambda y: torch.complex(y, y),
        lambda y: torch.where(y > y.mean(), torch.nan, y),
        lambda y: torch.where(y > y.mean(), torch.inf, y),
        lambda y: y.half(),
        lambda y: Output(y),
    ],
    ids=["tensor", "nested", "integers", "number", "complex", "nan", "inf", "half", "dataclass"],
)
@pytest.mark.parametrize("asks", [True, False])
def test_outputs_of_every_kind_are_compared(output: Callable[[Any], Any], asks: bool) -> None:
    def forward(model: Any, x: torch.Tensor) -> Any:
        y = model.layers[0](x)
        return output(1 - y if asks and not is_instance(model.layers[0]) else y)

    assert bool(blocked(net(forward, count=1))) is asks


def test_structures_and_shapes_are_compared() -> None:
    y = torch.ones(2, 3)
    make = [
        lambda: y,
        lambda: y[:1],
        lambda: y.double(),
        lambda: [y],
        lambda: [y, y],
        lambda: {"a": y},
        lambda: [y, "text"],
        lambda: y.to_sparse(),
    ]
    trial = stand_ins._Trial(net(lambda m, x: next(outputs), count=1), {}, X)
    for one in make:
        for other in make:
            outputs = iter([one(), other()])
            first, second = trial._run(trial.model), trial._run(trial.model)
            assert (stand_ins._difference(first, second) == 0) is (one is other)


def test_input_that_the_model_changes_is_the_same_to_each_run() -> None:
    model = net(lambda m, x: m.layers[0](x.sub_(1).relu_()), count=1)
    x = X.clone()
    assert blocked(model, (x,)) == {}
    assert torch.equal(x, X)


def test_output_that_is_written_anew_by_each_run_is_compared_as_it_was() -> None:
    def forward(model: Any, x: torch.Tensor) -> torch.Tensor:
        y = model.layers[0](x)
        model.kept.copy_(y if is_instance(model.layers[0]) else 2 * y)
        return model.kept

    model = net(forward, count=1)
    model.kept = torch.zeros(2, 8, 10, 10)
    assert set(blocked(model)) == {"layers.0"}


def test_root_and_shared_modules() -> None:
    assert blocked(conv()) == {}
    layer = conv()
    model = nn.Sequential(layer, nn.ReLU(inplace=True), layer)
    assert blocked(model) == {}

    def forward(model: Any, x: torch.Tensor) -> torch.Tensor:
        y = model.layers[0](x)
        return y if is_instance(model.layers[1]) else 2 * y

    shared = net(forward, count=1)
    shared.layers.append(shared.layers[0])
    assert set(blocked(shared)) == {"layers.0"}


def test_hook_that_needs_the_convolution_keeps_it() -> None:
    model = nn.Sequential(conv(), conv())
    model[0].register_forward_hook(lambda module, args, output: output / module.out_channels)
    told = blocked(model)
    assert set(told) == {"0"}
    assert "AttributeError: 'Sequential' object has no attribute 'out_channels'" in told["0"]


def test_plan_that_names_such_a_layer_is_refused() -> None:
    edited = full(Asking(lambda _: True))
    with pytest.raises(factorize.FactorizeError, match="asks what this layer is"):
        factorize.make_plan(Asking(is_instance), X, edited=edited)
