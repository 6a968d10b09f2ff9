"""Curves of errors of what layers put out, given the moments of what they take in."""

from __future__ import annotations

import pytest
import torch
from replaying import BATCHES, conv, net, offered, rank_near, specs_of
from searching import Tied
from torch import Tensor, nn
from torch.nn import functional as F

from factorize import calibrate, find
from factorize.errors import DataError
from factorize.fit.layer import fit_layer, summed
from factorize.search.curves import Curves
from factorize.search.error_curve import Fit, Key, macs_of
from factorize.spec import ConvSpec, Rank
from factorize.tensor.effort import Effort, with_effort
from factorize.tensor.moments import LayerCalibration
from factorize.tensor.norm import Norm
from factorize.types import Factorization, LayerPlan


def fitted(
    model: nn.Module, spec: ConvSpec, key: Key, rank: Rank, moments: LayerCalibration
) -> Factorization:
    """As quickly as a search fits it."""
    plan = LayerPlan(spec, key[0], rank, key[1])
    with with_effort(Effort.QUICK):
        return fit_layer(plan, model.get_submodule(spec.name), moments, seed=0)


def test_fits_are_those_of_the_layer_and_tell_their_kernels():
    model = net()
    specs = specs_of(model)
    moments = calibrate.collect(model, specs, BATCHES)
    told: list[tuple[str, Fit]] = []
    chains = offered(specs, ["spatial_svd", "cp"])
    curves = Curves(
        model, specs, chains, iter(moments.layers.items()), probes=(0.3, 0.6),
        on_fit=lambda name, fit: told.append((name, fit)),
    )  # fmt: skip
    assert [(name, fit.key) for name, fit in told] == [
        (name, None) for name in ("a", "b", "twice") for _ in range(2)
    ]
    asked = [
        (name, key, rank_near(specs[name], key, ranks, share))
        for name, of_layer in chains.items()
        for key, ranks in of_layer.items()
        for share in (0.3, 0.6)
    ]
    curves.fit(asked)
    assert [(name, fit.key) for name, fit in told[6:]] == [(name, key) for name, key, _ in asked]
    for (name, key, rank), (_, fit) in zip(asked, told[6:], strict=True):
        spec = specs[name]
        assert fit.macs == macs_of(spec, key, rank)
        true = fitted(model, spec, key, rank, moments.layers[name]).error ** 2
        assert fit.error == pytest.approx(true, rel=1e-6)
        assert curves.error(name, key, fit.macs) == fit.error
    for name, fit in told:
        weight: Tensor = model.get_submodule(name).weight.detach().double()  # type: ignore
        assert fit.kernel is not None
        off = Norm(moments.layers[name].fit.second).relative_error(weight, fit.kernel)
        assert fit.error <= 1.01
        if fit.bias is None:
            assert fit.error == pytest.approx(off**2, rel=1e-6)


def test_rough_looks_are_within_a_factor_of_three():
    model = net()
    specs = specs_of(model)
    moments = calibrate.collect(model, specs, BATCHES)
    chains = offered(specs, ["spatial_svd", "cp", "tucker2"])
    curves = Curves(model, specs, chains, moments.layers.items(), probes=(0.3,))
    for name, of_layer in chains.items():
        for key, ranks in of_layer.items():
            rank = rank_near(specs[name], key, ranks, 0.4)
            true = fitted(model, specs[name], key, rank, moments.layers[name]).error ** 2
            ratio = curves.error(name, key, macs_of(specs[name], key, rank)) / true
            assert 1 / 3 < ratio < 3, (name, key, ratio)


def test_a_layer_that_others_share_the_weight_of_is_fitted_to_the_inputs_of_all():
    model, key = Tied().eval(), ("cp", "", ())
    images = torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    every = {site.spec.name: site.spec for site in find(model, images[:1])}
    moments = calibrate.collect(model, every, [images]).layers
    specs = {name: every[name] for name in ("a", "last")}
    chains = offered(specs, ["cp"])
    tied = {"a": ("b",), "last": ()}
    # Not in the order of the specs: a layer waits for all that it is fitted to.
    arriving = [(name, moments[name]) for name in ("last", "a", "stem", "b")]
    rank = rank_near(specs["a"], key, chains["a"][key], 0.4)
    found = {}
    for name, of in (("both", tied), ("alone", None)):
        curves = Curves(model, specs, chains, arriving, tied=of)
        curves.fit([("a", key, rank)])
        found[name] = curves.error("a", key, macs_of(specs["a"], key, rank))
    for name, parts in (("both", [moments["a"], moments["b"]]), ("alone", [moments["a"]])):
        true = fitted(model, specs["a"], key, rank, summed(parts)).error ** 2
        assert found[name] == pytest.approx(true, rel=1e-6)
    assert found["both"] != pytest.approx(found["alone"], rel=1e-3)


@pytest.mark.parametrize("tied", [None, {"a": ("twice",)}])
def test_calibration_that_lacks_a_layer_is_told(tied: dict[str, tuple[str, ...]] | None):
    model = net()
    specs = specs_of(model)
    del specs["twice"]
    moments = calibrate.collect(model, {"b" if tied else "a": specs["b" if tied else "a"]}, BATCHES)
    chains = offered(specs, ["spatial_svd"])
    lacking = "a" if tied else "b"
    with pytest.raises(DataError, match=rf"^{lacking}: the calibration must have the moments"):
        Curves(model, specs, chains, moments.layers.items(), tied=tied)


# Large layers


def test_large_layer_is_estimated_in_the_norm_of_its_outputs():
    """Inputs of low rank: far less is lost than the weight alone tells."""
    model, specs = conv(80, 80)
    mixing = torch.randn(80, 8, generator=torch.Generator().manual_seed(2))
    x = torch.einsum("ci,nihw->nchw", mixing, torch.randn(20, 8, 8, 8))
    moments = calibrate.collect(model, specs, [x])
    chains = offered(specs, ["tucker2", "spatial_svd", "depthwise_pointwise"])
    known = Curves(model, specs, chains, moments.layers.items())
    blind = Curves(model, specs, chains, None)
    assert known.layers["0"].moments is None  # they are large too
    for key, ranks in chains["0"].items():
        macs = macs_of(specs["0"], key, rank_near(specs["0"], key, ranks, 0.35))
        if key[0] != "depthwise_pointwise":  # it cannot use that the channels are mixed
            assert known.error("0", key, macs) < 0.3 * blind.error("0", key, macs), key


def test_estimates_are_near_the_errors_of_fits():
    """Inputs that are smooth, and whose channels have much in common."""
    model, specs = conv(72, 72)
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(72, 72, generator=generator) * 0.97 ** torch.arange(72)
    noise = F.avg_pool2d(torch.randn(60, 72, 12, 12, generator=generator), 3, 1)
    moments = calibrate.collect(model, specs, [torch.einsum("ci,nihw->nchw", mixing, noise)])
    chains = offered(specs, ["tucker2", "spatial_svd", "channel_svd"])
    curves, rough, close = Curves(model, specs, chains, moments.layers.items()), {}, {}
    for key, ranks in chains["0"].items():
        rank = rank_near(specs["0"], key, ranks, 0.3)
        macs = macs_of(specs["0"], key, rank)
        true = fitted(model, specs["0"], key, rank, moments.layers["0"]).error ** 2
        rough[key] = curves.error("0", key, macs) / true
        curves.fit([("0", key, rank)])
        close[key] = curves.error("0", key, macs) / true
    assert all(0.7 < ratio < 1.5 for ratio in close.values()), close
    assert all(1 / 3 < ratio < 3 for ratio in rough.values()), rough
