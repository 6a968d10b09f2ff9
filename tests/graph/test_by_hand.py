"""Convolutions whose attributes were set, or whose weights were cut, by hand: right, or refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from rewriting import X, assert_same_function, full
from torch import nn

import factorize
from factorize.errors import UnsupportedLayerError
from factorize.graph.spec_of import spec_of


class Cut(nn.Module):
    """One layer between two others, as after a pruning by hand."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x))


def cut(layer: Any, outputs: int, inputs: int) -> Any:
    """The layer with that many channels left, its attributes as they were."""
    one, two = (inputs, outputs) if getattr(layer, "transposed", False) else (outputs, inputs)
    layer.weight = nn.Parameter(layer.weight[:one, :two].detach().clone())
    layer.bias = nn.Parameter(layer.bias[:outputs].detach().clone())
    return layer


def check(layer: Any, x: torch.Tensor = X) -> factorize.ConvSpec:
    """The layer is replaced, by chains that compute the same, and the plan can be made again."""
    model = Cut(layer)
    before = copy.deepcopy(vars(layer))
    plan = full(model, x, include=["*"], method="channel_svd")
    (planned,) = plan.factorized
    assert_same_function(model, factorize.rewrite(model, plan), x)
    factorize.make_plan(model, x, edited=plan)
    assert {k: v for k, v in vars(layer).items() if not k.startswith("_")} == {
        k: v for k, v in before.items() if not k.startswith("_")
    }
    result = factorize.compress(model, x, plan=plan, latency=False)
    assert result.report.macs["original"] == planned.spec.macs
    return planned.spec


def test_weight_that_was_cut() -> None:
    spec = check(cut(nn.Conv2d(16, 12, 3, padding=1), 5, 8))
    assert (spec.in_channels, spec.out_channels) == (8, 5)
    spec = check(cut(nn.ConvTranspose2d(16, 12, 3), 5, 8))
    assert (spec.in_channels, spec.out_channels) == (8, 5)
    spec = check(cut(nn.Conv2d(16, 12, 3, groups=2), 6, 4))
    assert (spec.in_channels, spec.out_channels, spec.groups) == (8, 6, 2)


def test_linear_layer_that_was_cut() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Flatten(2), cut(nn.Linear(99, 20), 7, 64))
    spec = next(s.spec for s in factorize.find(model, X) if s.spec.name == "2")
    assert (spec.in_channels, spec.out_channels) == (64, 7)
    plan = full(model, include=["2"], method="channel_svd")
    assert_same_function(model, factorize.rewrite(model, plan))


def test_kernel_that_was_cut() -> None:
    layer = nn.Conv2d(8, 6, 5, padding=1)
    layer.weight = nn.Parameter(layer.weight[..., 1:4, 2:3].detach().clone())
    assert check(layer).kernel == (3, 1)


@pytest.mark.parametrize("layer", [nn.Conv2d(8, 6, 3), nn.ConvTranspose2d(8, 6, 3)])
@pytest.mark.parametrize(
    ("attribute", "value", "read"),
    [
        ("stride", 2, (2, 2)),
        ("stride", [2, 1], (2, 1)),
        ("stride", (2,), (2, 2)),
        ("padding", 1, (1, 1)),
        ("dilation", 2, (2, 2)),
        ("dilation", [1, 2], (1, 2)),
        ("kernel_size", 3, (3, 3)),
        ("kernel_size", 7, (3, 3)),
        ("groups", 1, 1),
        ("in_channels", 99, 8),
        ("out_channels", 99, 6),
    ],
)
def test_one_number_for_all_axes(layer: Any, attribute: str, value: object, read: object) -> None:
    layer = copy.deepcopy(layer)
    setattr(layer, attribute, value)
    if layer.transposed and attribute == "padding":  # which torch itself refuses
        with pytest.raises(UnsupportedLayerError, match="must be a tuple"):
            check(layer)
        return
    spec = check(layer)
    assert getattr(spec, attribute.removesuffix("_size")) == read
    assert type(spec.groups) is int


def test_one_number_for_the_padding_of_outputs() -> None:
    layer = nn.ConvTranspose2d(8, 6, 3, stride=2)
    layer.output_padding = 1
    assert check(layer).output_padding == (1, 1)


def test_groups_that_were_changed_are_those_of_the_weight() -> None:
    layer = nn.Conv2d(4, 6, 3)
    layer.groups = 2
    spec = check(layer)
    assert (spec.in_channels, spec.out_channels, spec.groups) == (8, 6, 2)


@pytest.mark.parametrize("change", [("padding", (2, 2)), ("padding", 0), ("dilation", (2, 2))])
def test_padding_that_torch_keeps_beside_is_not_guessed(change: tuple[str, Any]) -> None:
    layer = nn.Conv2d(8, 6, 3, padding="same" if change[0] == "dilation" else 1,
                      padding_mode="reflect")  # fmt: skip
    setattr(layer, *change)
    model = nn.Sequential(nn.Conv2d(8, 8, 3), layer)
    plan = full(model)
    assert plan.layers[1].skip_reason == (
        "its padding was changed since it was made: torch pads by what it was"
    )
    assert_same_function(model, factorize.rewrite(model, plan))


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("stride", (1, 1, 1)), ("stride", "two"), ("dilation", None), ("groups", "x"),
     ("padding", "all")],
)  # fmt: skip
def test_what_no_number_can_be_is_refused_by_layer(attribute: str, value: object) -> None:
    model = nn.ModuleDict({"used": nn.Conv2d(8, 8, 3), "wrong": nn.Conv2d(8, 8, 3)})
    setattr(model["wrong"], attribute, value)
    model.forward = lambda x: model["used"](x)  # type: ignore[method-assign]
    with pytest.raises(UnsupportedLayerError, match=rf"^wrong: its {attribute} must be a number"):
        factorize.find(model, X)


def test_computed_weights_are_described_by_attributes() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 6, 3))
    assert spec_of(layer, "").weight_shape == (6, 8, 3, 3)
    lazy = nn.LazyConv2d(6, 3)
    assert spec_of(lazy, "").kernel == (3, 3)
