"""Conformance: every registered method, over all that a convolution can be.

Nothing here names a method but where it has a property of its own, so a method that is registered
tomorrow is covered.
"""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import factorize
from factorize import methods
from factorize.errors import RankError, UnsupportedLayerError
from factorize.measure import count
from factorize.methods.base import Method
from factorize.methods.chain import chain_kernel
from factorize.methods.svd import SvdMethod
from factorize.types import ConvSpec, LayerPlan

# torch's own notice that 'same' costs it a copy for even kernels.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

ALL = methods.names()
SVD = [name for name in ALL if isinstance(methods.get(name), SvdMethod)]


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Conv2d, torch.Tensor]:
    """A convolution of any attributes, and an input it takes."""
    side = st.integers(1, 7)
    kernel = draw(st.one_of(st.tuples(side, side), side.map(lambda k: (1, k)),
                            side.map(lambda k: (k, 1))))  # fmt: skip
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    padding = draw(st.one_of(
        st.sampled_from(["same", "valid"]), st.tuples(st.integers(0, 3), st.integers(0, 3))
    ))  # fmt: skip
    stride = (1, 1) if padding == "same" else draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    torch.manual_seed(draw(st.integers(0, 1000)))
    conv = nn.Conv2d(
        draw(st.integers(1, 6)), draw(st.integers(1, 6)), kernel, stride, padding, dilation,
        bias=draw(st.booleans()), padding_mode=mode,
        dtype=draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])),
    )  # fmt: skip
    # Large enough for the dilated kernel, and for reflect and circular padding.
    size = [
        d * (k - 1) + 1 + draw(st.integers(3, 6)) for k, d in zip(kernel, dilation, strict=True)
    ]
    return conv, torch.randn(2, conv.in_channels, *size, dtype=torch.float64)


def full_rank_plan(model: nn.Module, x: torch.Tensor, method: str) -> factorize.Plan:
    return factorize.plan(model, x, method=method, rank=1.0, include=["*"], allow_costlier=True)


@pytest.mark.parametrize("method", ALL)
@given(layers())
def test_full_rank_reproduces_the_layer(method: str, layer: tuple[nn.Conv2d, torch.Tensor]) -> None:
    conv, x = layer
    plan = full_rank_plan(conv, x.to(conv.weight.dtype), method)
    chain = factorize.rewrite(conv, plan)

    assert all(stage.weight.dtype == conv.weight.dtype for stage in chain)
    with torch.no_grad():
        # The factors are rounded to the layer's dtype; the sums are compared in float64.
        expected, actual = copy.deepcopy(conv).double()(x), chain.double()(x)
    unit = torch.finfo(conv.weight.dtype).eps
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= 30 * unit * expected.norm() + 1e-12


@pytest.mark.parametrize("method", ALL)
@given(layers(), st.data())
def test_declared_costs_and_shapes_are_those_of_the_built_chain(
    method: str, layer: tuple[nn.Conv2d, torch.Tensor], data: st.DataObject
) -> None:
    conv, x = layer
    conv = conv.double()
    (full,) = full_rank_plan(conv, x, method).layers
    rank = tuple(data.draw(st.integers(1, top)) for top in full.rank)
    for variant in methods.get(method).variants:
        edited = factorize.Plan((LayerPlan(full.spec, method, rank, variant),), {})
        plan = factorize.plan(conv, x, edited=edited)
        chain = factorize.rewrite(conv, plan)
        stages = methods.chain_of(plan.layers[0])
        assert (plan.layers[0].params, plan.layers[0].macs) == count(chain, x)
        assert sum(stage.macs for stage in stages) == plan.layers[0].macs
        for stage, module in zip(stages, chain, strict=True):
            assert stage.input_sizes == (tuple(x.shape[2:]),)
            x_next = module(x)
            assert stage.output_sizes == (tuple(x_next.shape[2:]),)
            assert stage.weight_shape == tuple(module.weight.shape)
            x = x_next
        x = torch.randn(2, conv.in_channels, *full.spec.input_sizes[0], dtype=torch.float64)


@pytest.mark.parametrize("method", ALL)
def test_reported_error_is_that_of_the_kernel_the_chain_computes(method: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 7, (3, 4), bias=False).double()
    spec = ConvSpec("", "conv2d", 5, 7, (3, 4), (1, 1), (0, 0), (1, 1), bias=False)
    impulses = torch.zeros(5, 5, 5, 7, dtype=torch.float64)
    impulses[range(5), range(5), 2, 3] = 1.0  # the output is the kernel, mirrored
    for variant in methods.get(method).variants:
        rank = tuple(max(1, top // 4) for top in methods.get(method).max_rank(spec))
        layer = LayerPlan(spec, method, rank, variant)
        made = methods.factorize(layer, conv.weight)
        chain = factorize.rewrite(conv, factorize.Plan((layer,), {}))
        with torch.no_grad():
            kernel = chain(impulses).flip(2, 3).transpose(0, 1)
            error = (kernel - conv.weight).norm() / conv.weight.norm()
        assert made.error == pytest.approx(float(error), rel=1e-9)
        assert 0.01 < made.error < 1  # a quarter of the rank does cost something


@pytest.mark.parametrize("method", SVD)
def test_svd_errors_fall_with_the_rank_and_equal_the_discarded_singular_values(method: str) -> None:
    torch.manual_seed(1)
    weight = torch.randn(6, 5, 3, 3, dtype=torch.float64)
    spec = ConvSpec("c", "conv2d", 5, 6, (3, 3), (1, 1), (1, 1), (1, 1))
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


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("seed", range(3))
def test_planted_rank_is_recovered(method: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    spec = ConvSpec("c", "conv2d", 12, 10, (3, 3), (1, 1), (1, 1), (1, 1))
    for variant in methods.get(method).variants:
        rank = tuple(min(3, top) for top in methods.get(method).max_rank(spec))
        layer = LayerPlan(spec, method, rank, variant)
        stages = methods.chain_of(layer)
        planted = tuple(
            torch.randn(stage.weight_shape, generator=generator, dtype=torch.float64)
            for stage in stages
        )
        made = methods.factorize(layer, chain_kernel(stages, planted))
        assert made.error < 1e-3


@pytest.mark.parametrize("method", ALL)
def test_seeded_runs_are_identical(method: str) -> None:
    weight = torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(2))
    spec = ConvSpec("c", "conv2d", 6, 8, (3, 3), (1, 1), (1, 1), (1, 1))
    layer = LayerPlan(spec, method, tuple(2 for _ in methods.get(method).max_rank(spec)),
                      methods.get(method).variants[0])  # fmt: skip
    state = torch.random.get_rng_state()
    one, two = (methods.factorize(layer, weight, seed=5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.weights, two.weights, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("method", ALL)
def test_chain_exports_to_conv_nodes_only(method: str, tmp_path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).eval()
    x = torch.randn(2, 8, 9, 9)
    plan = factorize.plan(model, x, method=method, rank=2, allow_costlier=True)
    chains = {one.spec.name: len(methods.chain_of(one)) for one in plan.factorized}
    made = factorize.rewrite(model, plan)
    check = factorize.export_onnx(made, x, tmp_path / "model.onnx", chains=chains)
    assert check.nodes == {"Conv": sum(chains.values()), "Relu": 1}
    assert check.dynamic_batch


@pytest.mark.parametrize("method", ALL)
def test_zero_kernel_stays_zero(method: str) -> None:
    spec = ConvSpec("c", "conv2d", 3, 4, (3, 3), (1, 1), (1, 1), (1, 1))
    chosen = methods.get(method)
    layer = LayerPlan(spec, method, tuple(1 for _ in chosen.max_rank(spec)), chosen.variants[0])
    made = methods.factorize(layer, torch.zeros(4, 3, 3, 3))
    assert made.error == 0
    assert not chain_kernel(made.stages, made.weights).any()


@pytest.mark.parametrize("method", ALL)
def test_rank_out_of_range_names_layer_limit_and_value(method: str) -> None:
    spec = ConvSpec("layer4.0.conv1", "conv2d", 3, 4, (3, 3), (1, 1), (1, 1), (1, 1))
    chosen = methods.get(method)
    limit = chosen.max_rank(spec)
    for bad in (0, limit[0] + 1):
        layer = LayerPlan(spec, method, (bad, *limit[1:]), chosen.variants[0])
        with pytest.raises(
            RankError, match=rf"layer4.0.conv1: rank .* 1\.\.{limit[0]} .* got {bad}"
        ):
            methods.factorize(layer, torch.zeros(4, 3, 3, 3))
    with pytest.raises(RankError, match="takes"):
        methods.factorize(LayerPlan(spec, method, (*limit, 1), chosen.variants[0]),
                          torch.zeros(4, 3, 3, 3))  # fmt: skip


@pytest.mark.parametrize("method", ALL)
def test_grouped_layers_are_refused_with_a_reason(method: str) -> None:
    spec = ConvSpec("c", "conv2d", 4, 4, (3, 3), (1, 1), (1, 1), (1, 1), groups=2)
    with pytest.raises(UnsupportedLayerError, match="groups=2"):
        methods.chain_of(LayerPlan(spec, method, (1,), methods.get(method).variants[0]))


def test_a_method_registered_later_is_used_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twin(type(methods.get("channel_svd"))):
        name = "twin"

    monkeypatch.setattr("factorize.methods.base._registry", dict(methods.base._registry))
    assert issubclass(Twin, Method)
    methods.register(Twin())
    assert "twin" in methods.names()
    plan = factorize.plan(nn.Conv2d(8, 8, 3), torch.randn(1, 8, 5, 5), method="twin", rank=2)
    assert plan.layers[0].method == "twin"
