"""Conformance: every registered method, over all that a convolution can be.

Nothing here names a method but where it has a property of its own, so a method that is registered
tomorrow is covered.
"""

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from convolutions import Host, layers, shapes, sizes_of, typical
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import factorize
from factorize import methods
from factorize.errors import RankError
from factorize.graph import effective_weight
from factorize.graph.spec_of import KINDS, spec_of
from factorize.measure import count
from factorize.methods.base import Method
from factorize.methods.chain import chain_kernel
from factorize.methods.factorize import predicted_error
from factorize.methods.svd import SvdMethod
from factorize.spec import ConvSpec
from factorize.types import LayerPlan

# torch's own notice that 'same' costs it a copy for even kernels.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

ALL = methods.names()
SVD = [name for name in ALL if isinstance(methods.get(name), SvdMethod)]


def layer_plan(plan: factorize.Plan) -> LayerPlan:
    return next(one for one in plan.layers if one.spec.name == "layer")


def unit_impulses(spec: ConvSpec) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """One impulse per input channel, in the middle; the output as one tensor of kernel entries."""
    size = [2 * k - 1 for k in spec.kernel]
    impulses = torch.zeros(spec.in_channels, spec.in_channels, *size, dtype=torch.float64)
    channels = range(spec.in_channels)
    impulses[(channels, channels, *(k - 1 for k in spec.kernel))] = 1.0
    return impulses, lambda output: output.flatten()


def full_rank_plan(model: nn.Module, x: torch.Tensor, method: str) -> factorize.Plan:
    return factorize.make_plan(
        model, x, method=method, rank=1.0, include=["*"], allow_costlier=True
    )


@pytest.mark.parametrize("method", ALL)
@given(st.data())
def test_full_rank_reproduces_the_layer(method: str, data: st.DataObject) -> None:
    conv, x = data.draw(layers(method))
    conv = Host(conv)
    plan = full_rank_plan(conv, x.to(conv.dtype), method)
    chain = factorize.rewrite(conv, plan)

    assert all(weight.dtype == conv.dtype for weight in chain.layer.parameters())
    with torch.no_grad():
        # The factors are rounded to the layer's dtype; the sums are compared in float64.
        expected, actual = copy.deepcopy(conv).double()(x), chain.double()(x)
    unit = torch.finfo(conv.dtype).eps
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= 30 * unit * expected.norm() + 1e-12


@pytest.mark.parametrize("method", ALL)
@given(st.data())
def test_declared_costs_and_shapes_are_those_of_the_built_chain(
    method: str, data: st.DataObject
) -> None:
    layer, x = data.draw(layers(method))
    model = Host(layer.double())
    full = layer_plan(full_rank_plan(model, x, method))
    rank = tuple(data.draw(st.integers(1, top)) for top in full.rank)
    for variant in methods.get(method).variants:
        edited = factorize.Plan((LayerPlan(full.spec, method, rank, variant),), {})
        plan = layer_plan(factorize.make_plan(model, x, edited=edited))
        chain = factorize.rewrite(model, edited).layer
        stages = methods.chain_of(plan)
        assert (plan.params, plan.macs) == count(chain, x)[:2]
        assert sum(stage.macs for stage in stages) == plan.macs
        here = x
        for stage, module in zip(stages, chain, strict=True):
            shuffles = isinstance(module, nn.ChannelShuffle)
            assert stage.input_sizes == (sizes_of(layer, here),)
            here = module(here)
            assert stage.output_sizes == (sizes_of(layer, here),)
            assert shuffles or stage.weight_shape == tuple(module.weight.shape)


@pytest.mark.parametrize("method", ALL)
@given(st.data())
def test_reported_error_is_that_of_the_kernel_the_chain_computes(
    method: str, data: st.DataObject
) -> None:
    layer, _ = data.draw(layers(method))
    model = Host(layer.double())
    layer.bias = None
    if not isinstance(layer, nn.Linear):  # strides and padding are the other tests' business
        ones = (1,) * len(layer.kernel_size)
        layer.stride = layer.dilation = ones
        layer.padding, layer.padding_mode = tuple(0 for _ in ones), "zeros"
        layer._reversed_padding_repeated_twice = [0] * (2 * len(ones))
    if getattr(layer, "output_padding", None):
        layer.output_padding = tuple(0 for _ in layer.output_padding)
    spec = spec_of(layer, "layer")
    impulses, kernel_of = unit_impulses(spec)
    for variant in methods.get(method).variants:
        rank = tuple(data.draw(st.integers(1, top)) for top in methods.get(method).max_rank(spec))
        planned = LayerPlan(spec, method, rank, variant)
        made = methods.factorize(planned, effective_weight(layer))
        chain = factorize.rewrite(model, factorize.Plan((planned,), {}))
        with torch.no_grad():
            expected, actual = kernel_of(model(impulses)), kernel_of(chain(impulses))
        error = (actual - expected).norm() / expected.norm()
        assert made.error == pytest.approx(float(error), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("method", SVD)
def test_svd_errors_fall_with_the_rank_and_equal_the_discarded_singular_values(method: str) -> None:
    torch.manual_seed(1)
    spec = typical(method, 5, 6)
    weight = torch.randn(spec.kernel_shape, dtype=torch.float64)
    chosen = methods.get(method)
    for variant in chosen.variants:
        values = torch.linalg.svdvals(chosen.matrix(weight, variant))  # type: ignore[attr-defined]
        errors = []
        for rank in range(1, chosen.max_rank(spec)[0] + 1):
            error = methods.factorize(LayerPlan(spec, method, (rank,), variant), weight).error
            tail = values[..., rank:].norm() / weight.norm()
            assert error == pytest.approx(float(tail), abs=1e-12)
            assert chosen.predicted_error(weight, (rank,), variant) == pytest.approx(
                error, abs=1e-12
            )
            errors.append(error)
        assert all(after < before for before, after in itertools.pairwise(errors))


@pytest.mark.parametrize("method", SVD)
def test_predicted_error_of_a_grouped_layer_is_that_of_its_fit(method: str) -> None:
    spec = replace(typical(method, 8, 12), groups=2)
    weight = torch.randn(spec.kernel_shape, generator=torch.Generator().manual_seed(3)).double()
    for variant in methods.get(method).variants:
        predicted = predicted_error(methods.get(method), spec, weight, (2,), variant)
        made = methods.factorize(LayerPlan(spec, method, (2,), variant), weight)
        assert predicted == pytest.approx(made.error, rel=1e-9)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("seed", range(3))
def test_planted_rank_is_recovered(method: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    spec = typical(method, 12, 10)
    for variant in methods.get(method).variants:
        rank = tuple(min(3, top) for top in methods.get(method).max_rank(spec))
        layer = LayerPlan(spec, method, rank, variant)
        stages = methods.chain_of(layer)
        planted = tuple(
            torch.randn(stage.kernel_shape, generator=generator, dtype=torch.float64)
            for stage in stages
        )
        made = methods.factorize(layer, chain_kernel(stages, planted))
        assert made.error < 1e-3


@pytest.mark.parametrize("method", ALL)
def test_seeded_runs_are_identical(method: str) -> None:
    spec = typical(method, 6, 8)
    weight = torch.randn(spec.kernel_shape, generator=torch.Generator().manual_seed(2))
    layer = LayerPlan(spec, method, tuple(2 for _ in methods.get(method).max_rank(spec)),
                      methods.get(method).variants[0])  # fmt: skip
    state = torch.random.get_rng_state()
    one, two = (methods.factorize(layer, weight, seed=5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.weights, two.weights, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("method", ALL)
def test_chain_exports_to_conv_nodes_only(method: str, tmp_path) -> None:
    torch.manual_seed(0)
    spec = typical(method, 8, 8)
    layer, other = (
        {"conv2d": nn.Conv2d, "conv3d": nn.Conv3d}[spec.kind](8, 8, spec.kernel, padding=pad)
        for pad in (spec.padding, 1)
    )
    model = nn.Sequential(layer, nn.ReLU(), other).eval()
    x = torch.randn(2, 8, *(9 for _ in spec.kernel))
    plan = factorize.make_plan(model, x, method=method, rank=2, allow_costlier=True, include=["*"])
    chains = {one.spec.name: len(methods.chain_of(one)) for one in plan.factorized}
    kinds = [stage.kind for one in plan.factorized for stage in methods.chain_of(one)]
    shuffles = kinds.count("channel_shuffle")
    made = factorize.rewrite(model, plan)
    check = factorize.export_onnx(made, x, tmp_path / "model.onnx", chains=chains)
    assert check.nodes.get("Transpose", 0) == shuffles
    # torch 2.6 makes the shapes of a shuffle from its input's.
    shapes = ("Reshape", "Transpose", "Shape", "Concat") if shuffles else ()
    nodes = {kind: count for kind, count in check.nodes.items() if kind not in shapes}
    assert nodes == {"Conv": len(kinds) - shuffles, "Relu": 1}
    assert check.dynamic_batch


@pytest.mark.parametrize("method", ALL)
def test_zero_kernel_stays_zero(method: str) -> None:
    spec = typical(method, 3, 4)
    chosen = methods.get(method)
    layer = LayerPlan(spec, method, tuple(1 for _ in chosen.max_rank(spec)), chosen.variants[0])
    made = methods.factorize(layer, torch.zeros(spec.kernel_shape))
    assert made.error == 0
    assert not chain_kernel(made.stages, made.weights).any()


@pytest.mark.parametrize("method", ALL)
def test_rank_out_of_range_names_layer_limit_and_value(method: str) -> None:
    spec = replace(typical(method, 3, 4), name="layer4.0.conv1")
    chosen = methods.get(method)
    limit = chosen.max_rank(spec)
    for bad in (0, limit[0] + 1):
        layer = LayerPlan(spec, method, (bad, *limit[1:]), chosen.variants[0])
        with pytest.raises(
            RankError, match=rf"layer4.0.conv1: rank .* 1\.\.{limit[0]} .* got {bad}"
        ):
            methods.factorize(layer, torch.zeros(spec.kernel_shape))
    with pytest.raises(RankError, match="takes"):
        methods.factorize(LayerPlan(spec, method, (*limit, 1), chosen.variants[0]),
                          torch.zeros(spec.kernel_shape))  # fmt: skip


def test_every_kind_has_methods_and_every_method_a_kind() -> None:
    taken = {shape for method in ALL for shape in shapes(method)}
    assert {kind for kind, _, _ in taken} == set(KINDS.values())
    assert {(kind, True) for kind in KINDS.values() if kind != "linear"} <= {
        (kind, grouped) for kind, _, grouped in taken
    }
    assert all(shapes(method) for method in ALL)


def test_a_method_registered_later_is_used_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twin(type(methods.get("channel_svd"))):
        name = "twin"

    monkeypatch.setattr("factorize.methods.base._registry", dict(methods.base._registry))
    assert issubclass(Twin, Method)
    methods.register(Twin())
    assert "twin" in methods.names()
    plan = factorize.make_plan(nn.Conv2d(8, 8, 3), torch.randn(1, 8, 5, 5), method="twin", rank=2)
    assert plan.layers[0].method == "twin"
