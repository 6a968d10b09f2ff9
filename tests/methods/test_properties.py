"""Properties of the whole way from a layer to a saved chain, over all that a layer can be.

As in `test_methods`, nothing here names a method but where it has a property of its own.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from convolutions import (
    DTYPES,
    KINDS,
    PADDING_MODES,
    Host,
    attributes,
    layers,
    shapes,
    sizes_of,
    spec,
    spec_of,
    square,
)
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from torch import nn

import factorize
from factorize import methods
from factorize.errors import PlanError
from factorize.export import save_weights
from factorize.graph import effective_weight
from factorize.methods.svd import SvdMethod
from factorize.plan import load_plan, save_plan
from factorize.types import LayerPlan

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

ALL = methods.names()
SVD = [name for name in ALL if isinstance(methods.get(name), SvdMethod)]
FEWER = settings(max_examples=max(settings().max_examples // 5, 1))


def planned(data: st.DataObject, method: str) -> tuple[Any, torch.Tensor, factorize.Plan]:
    """A model of one layer, an input of its dtype, and a plan at a random rank and order."""
    layer, x = data.draw(layers(method))
    model: Any = Host(layer)
    x = x.to(effective_weight(layer).dtype)
    chosen, spec = methods.get(method), spec_of(layer, "layer", (sizes_of(layer, x),))
    rank = tuple(data.draw(st.integers(1, top)) for top in chosen.max_rank(spec))
    one = LayerPlan(spec, method, rank, data.draw(st.sampled_from(chosen.variants)))
    return model, x, factorize.make_plan(model, x, edited=factorize.Plan((one,), {}))


def bits(model: nn.Module) -> dict[str, Any]:
    """All that a model is, to compare: values, where and how they lie, flags."""
    state = model.state_dict(keep_vars=True)
    tensors = {
        name: (t.detach().clone(), t.dtype, t.device, t.stride(), t.requires_grad)
        for name, t in state.items()
    }
    return {**tensors, "modes": [(type(m), m.training) for m in model.modules()]}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def output(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x)


def expected_of(kind: str) -> set[str]:
    """What `layers` must draw of a kind, some method or other."""
    found = {"bias", "no bias", "train", "eval", "trainable", "frozen", "weight norm", "strided"}
    found |= {str(dtype) for dtype in DTYPES}
    if kind == "linear":
        return found | {"tokens"}
    found |= {
        "grouped", "depthwise", "depthwise with a multiplier", "kernel of 1", "even kernel",
        "stride", "dilation", "padding", "kernel above map",
    }  # fmt: skip
    if "1d" not in kind:
        found.add("oblong kernel")
    if "2d" in kind:
        found.add("channels last")
    if "transpose" in kind:
        return found | {"output padding", "zeros padding"}
    return found | {"same", "same, even kernel"} | {f"{mode} padding" for mode in PADDING_MODES}


def test_the_space_of_layers_is_reached() -> None:
    seen: set[tuple[str, str]] = set()
    for index, method in enumerate(ALL):

        @seed(index)
        @settings(settings.get_profile("ci"), derandomize=False, database=None, max_examples=150)
        @given(st.just(method), layers(method))
        def draw(method: str, case: tuple[nn.Module, torch.Tensor]) -> None:
            kind = spec_of(case[0], "").kind
            seen.update((kind, what) for what in {*attributes(*case), method})

        draw()
    wanted = {(kind, what) for kind in KINDS.values() for what in expected_of(kind)}
    wanted |= {(kind, method) for method in ALL for kind, _, _ in shapes(method)}
    assert sorted(wanted - seen) == []


@pytest.mark.parametrize("method", ALL)
@FEWER
@given(st.data())
def test_a_chain_is_in_all_else_like_its_layer(method: str, data: st.DataObject) -> None:
    model, x, plan = planned(data, method)
    before, given_x = bits(model), x.clone()
    chain = factorize.rewrite(model, plan).layer
    layer = model.layer
    weight, bias = effective_weight(layer), layer.bias
    last = [stage for stage in chain if hasattr(stage, "weight")][-1]

    assert {p.dtype for p in chain.parameters()} == {weight.dtype}
    assert {p.device for p in chain.parameters()} == {weight.device}
    assert {module.training for module in chain.modules()} == {layer.training}
    trainable = any(p.requires_grad for name, p in layer.named_parameters() if name != "bias")
    assert {p.requires_grad for p in chain.parameters() if p is not last.bias} == {trainable}
    assert [p for name, p in chain.named_parameters() if name.endswith("bias")] == (
        [] if bias is None else [last.bias]
    )
    if bias is not None:
        assert torch.equal(last.bias, bias)
        assert last.bias.requires_grad == bias.requires_grad
    expected, actual = output(model, x), output(chain, x)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    with torch.no_grad():
        for parameter in chain.parameters():  # none is the model's own
            parameter.fill_(7)
    assert torch.equal(x, given_x)
    assert same(bits(model), before)


@pytest.mark.parametrize("method", ALL)
@FEWER
@given(st.data())
def test_zero_in_is_the_bias_out_at_any_rank(method: str, data: st.DataObject) -> None:
    model, x, plan = planned(data, method)
    made, zero = factorize.rewrite(model, plan).double(), torch.zeros_like(x, dtype=torch.float64)
    # In float64: some of torch's bfloat16 kernels leave the bias out where no input reaches.
    assert torch.equal(output(made, zero), output(model.double(), zero))


@pytest.mark.parametrize("method", ALL)
@FEWER
@given(st.data())
def test_saved_and_loaded_is_the_same_to_the_bit(method: str, data: st.DataObject) -> None:
    model, x, plan = planned(data, method)
    made, fresh = factorize.rewrite(model, plan), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.fill_(0.5)
    with tempfile.TemporaryDirectory() as folder:
        save_plan(plan, Path(folder, "plan.json"))
        save_weights(made, Path(folder, "model.safetensors"))
        read = load_plan(Path(folder, "plan.json"))
        again = factorize.load(folder, fresh)
    assert factorize.make_plan(model, x, edited=read) == plan
    assert same(bits(again), bits(made))
    assert torch.equal(output(again, x), output(made, x))


@pytest.mark.parametrize("method", ALL)
@FEWER
@given(st.data())
def test_factors_are_computed_in_float64_and_rounded_once(method: str, data: st.DataObject) -> None:
    model, _, plan = planned(data, method)
    weight = effective_weight(model.layer)
    (one,) = plan.factorized
    exact = methods.factorize(one, weight.double())
    stages = [s for s in factorize.rewrite(model, plan).layer if hasattr(s, "weight")]
    factors = [factor for factor in exact.weights if factor.numel()]
    assert {factor.dtype for factor in factors} == {torch.float64}
    for stage, factor in zip(stages, factors, strict=True):
        assert torch.equal(effective_weight(stage), factor.to(weight.dtype))


@pytest.mark.parametrize("method", SVD)
@given(st.data())
def test_energy_is_kept_and_more_of_it_takes_no_lower_rank(
    method: str, data: st.DataObject
) -> None:
    layer, x = data.draw(layers(method))
    model, weight = Host(layer), effective_weight(layer)
    ranks: dict[str, list[int]] = {}
    for percent in sorted(data.draw(st.lists(st.integers(1, 100), min_size=2, max_size=3))):
        (one,) = factorize.make_plan(
            model, x.to(weight.dtype), method=method, energy=percent / 100, include=["layer"],
            allow_costlier=True,
        ).factorized  # fmt: skip
        assert methods.factorize(one, weight).error ** 2 <= 1 - percent / 100 + 1e-9
        ranks.setdefault(one.variant, []).append(one.rank[0])
    assert all(of_order == sorted(of_order) for of_order in ranks.values())


@pytest.mark.parametrize("method", ALL)
@FEWER
@given(st.data())
def test_without_a_batch_axis_it_is_the_same_function_or_refused(
    method: str, data: st.DataObject
) -> None:
    model, x, plan = planned(data, method)
    x = x.double()
    if isinstance(model.double().layer, nn.Linear):
        return
    try:
        single = factorize.make_plan(model, x[0], edited=plan)
    except PlanError as error:
        assert "without a batch axis" in str(error)  # noqa: PT017
        assert methods.get(method).batched
        return
    assert [one.macs for one in single.layers] == [one.macs for one in plan.layers]
    made = factorize.rewrite(model, single)
    torch.testing.assert_close(output(made, x[0]), output(made, x)[0])


def test_the_layout_in_memory_does_not_show_in_the_factors() -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 8, 3, 3, dtype=torch.float64)
    layouts = weight, weight.to(memory_format=torch.channels_last), weight.mT.contiguous().mT
    for method in square():
        chosen, layer = methods.get(method), spec("conv2d", 3, inputs=8, outputs=8)
        rank = tuple(min(3, top) for top in chosen.max_rank(layer))
        one = LayerPlan(layer, method, rank, chosen.variants[0])
        first, *others = (methods.factorize(one, each, seed=1).weights for each in layouts)
        assert all(same(first, other) for other in others)
