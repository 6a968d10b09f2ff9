"""Chains in a model, made even and multiplied out: the model computes the same."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from convolutions import Host, layers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import factorize
from factorize import graph, methods
from factorize.graph.rewrite import swapped
from factorize.types import LayerPlan

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def uneven(method: str, data: st.DataObject) -> tuple[nn.Module, factorize.Plan, torch.Tensor]:
    """A model with one chain, whose factors and bias were changed since."""
    layer, x = data.draw(layers(method))
    model = Host(layer.double())
    full = factorize.make_plan(
        model, x, method=method, rank=1.0, include=["*"], allow_costlier=True
    )
    spec = next(layer for layer in full.layers if layer.spec.name == "layer")
    rank = tuple(data.draw(st.integers(1, top)) for top in spec.rank)
    variant = data.draw(st.sampled_from(methods.get(method).variants))
    edited = factorize.Plan((LayerPlan(spec.spec, method, rank, variant),), {})
    plan = factorize.make_plan(model, x, edited=edited)
    tuned = factorize.rewrite(model, plan)
    with torch.no_grad():
        for number, parameter in enumerate(tuned.layer.parameters()):
            scale = torch.rand(len(parameter), *(1,) * (parameter.ndim - 1)) * 10.0 ** (number % 3)
            parameter.mul_(scale.double() + 0.01)
    return tuned, plan, x


def close(a: nn.Module, b: nn.Module, x: torch.Tensor) -> bool:
    with torch.no_grad():
        want, got = a(x), b(x)
    return bool((want - got).norm() <= 1e-11 * want.norm() + 1e-14)


@pytest.mark.parametrize("method", methods.names())
@settings(max_examples=settings().max_examples // 3)
@given(st.data())
def test_balanced_chains_compute_the_same_with_even_factors(
    method: str, data: st.DataObject
) -> None:
    model, plan, x = uneven(method, data)
    before = copy.deepcopy(model)
    assert graph.balance_(model, plan) is model
    assert close(before, model, x)
    stages = methods.chain_of(plan.factorized[0])
    kernels = []
    for module, stage in zip(model.layer, stages, strict=True):
        weight = getattr(module, "weight", None)
        kernels.append(
            swapped(weight, stage) if stage.transposed and weight is not None else weight
        )
    for one, two, stage in zip(kernels, kernels[1:], stages[1:], strict=False):
        if one is None or two is None:
            continue
        given_ = one.detach().flatten(1).norm(dim=1)
        taken = two.detach().unflatten(0, (stage.groups, -1)).movedim(2, 1).flatten(2).norm(dim=2)
        live = (given_ > 1e-9) & (taken.flatten() > 1e-9)
        assert torch.allclose(given_[live], taken.flatten()[live], rtol=0.02)


@pytest.mark.parametrize("method", methods.names())
@settings(max_examples=settings().max_examples // 3)
@given(st.data())
def test_a_chain_multiplied_out_is_the_layer_it_stands_for(
    method: str, data: st.DataObject
) -> None:
    model, plan, x = uneven(method, data)
    dense = graph.collapse_(copy.deepcopy(model), plan)
    assert not isinstance(dense.layer, nn.Sequential)
    assert close(model, dense, x)
    again = factorize.make_plan(dense, x, edited=plan)  # the same layer to any plan
    assert again.factorized[0].spec == plan.factorized[0].spec


def test_what_was_shared_stays_shared() -> None:
    one, two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    two.weight = one.weight
    model, x = nn.Sequential(nn.Conv2d(3, 8, 1), one, one, two), torch.randn(1, 3, 8, 8)
    plan = factorize.make_plan(model, x, rank=4)
    chained = factorize.rewrite(model, plan)
    balanced = graph.balance_(copy.deepcopy(chained), plan)
    dense = graph.collapse_(copy.deepcopy(balanced), plan)
    assert balanced[1] is balanced[2]
    assert balanced[1][0].weight is balanced[3][0].weight
    assert dense[1] is dense[2]
    assert dense[1].weight is dense[3].weight
    with torch.no_grad():
        want = chained(x)
        for other in (balanced, dense):
            assert math.isclose(float((other(x) - want).norm() / want.norm()), 0, abs_tol=1e-5)


def test_a_root_is_its_chain() -> None:
    model, x = nn.Conv2d(8, 8, 3, padding=1), torch.randn(1, 8, 8, 8)
    plan = factorize.make_plan(model, x, rank=4)
    dense = graph.collapse_(factorize.rewrite(model, plan), plan)
    assert isinstance(dense, nn.Conv2d)
