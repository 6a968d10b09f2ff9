"""Curves of errors, without data and with it."""

from itertools import pairwise
from math import inf

import convolutions
import pytest
import torch
from replaying import BATCHES, conv, net, specs_of
from torch import Tensor, nn
from torch.nn import functional as F

from factorize import calibrate, find, methods
from factorize.errors import DataError
from factorize.fit.layer import fit_layer
from factorize.methods import base
from factorize.methods.svd import SvdMethod
from factorize.methods.tucker2 import Tucker2
from factorize.search.curves import curves
from factorize.search.error_curve import Curve, Fit, curve_through, family_of
from factorize.search.reduced import reduced
from factorize.spec import ConvSpec
from factorize.tensor.norm import Norm
from factorize.types import LayerPlan

# A curve


def test_curve_is_exact_at_its_points_falls_between_and_never_exceeds_one():
    curve = curve_through(("cp", "", ()), {100: 0.5, 300: 0.1, 200: 0.2, 400: 0.15})
    assert [curve.at(x) for x in (100, 200, 300)] == [0.5, 0.2, 0.1]
    assert curve.at(400) == 0.1  # a fit that is worse by chance
    values = [curve.at(x) for x in range(0, 600, 10)]
    assert values[0] == 1.0
    assert all(a >= b > 0 for a, b in pairwise(values))


def test_curve_of_one_point_leads_from_all_that_there_is_to_it():
    curve = Curve("cp", "", (), (100,), (0.25,))
    assert curve.at(0) == 1.0
    assert curve.at(50) == pytest.approx(0.5)
    assert curve.at(100) == 0.25
    assert Curve("cp", "", (), (100,), (3.0,), inf).at(50) == 3.0


def test_family_is_what_does_not_grow_with_the_rank():
    _, specs = conv(32, 48)
    (spec,) = specs.values()
    assert family_of(methods.get("block_term"), spec, (64, 8)) == (8,)
    assert family_of(methods.get("tucker2"), spec, (16, 24)) == ()
    assert family_of(methods.get("cp"), spec, (40,)) == ()


# Curves without data


def rank_at(method: base.Method, spec: ConvSpec, curve: Curve, macs: int) -> tuple[int, ...]:
    """The rank of a point of a curve."""
    return next(
        rank
        for rank in method.ladder(spec, step=8, count=10**9)
        if family_of(method, spec, rank) == curve.family
        and sum(s.macs for s in method.stages(spec, rank, curve.variant)) == macs
    )


@pytest.mark.parametrize("channels", [(24, 16), (72, 96)])
def test_curves_without_data_are_the_errors_of_factorize(channels):
    """Exactly for an SVD and for small layers; within 20 % where they are estimated."""
    model, specs = conv(*channels)
    (spec,), weight = specs.values(), model[0].weight  # type: ignore[index]
    found = curves(model, specs, convolutions.square(), None)["0"]
    assert {curve.method for curve in found} == set(convolutions.square())
    for curve in found:
        method = methods.get(curve.method)
        exact = isinstance(method, SvdMethod) or max(channels) <= 64
        points = list(zip(curve.macs, curve.error, strict=True))
        for macs, error in points[:: 5 if isinstance(method, SvdMethod) else 1]:
            rank = rank_at(method, spec, curve, macs)
            plan = LayerPlan(spec, curve.method, rank, curve.variant)
            true = methods.factorize(plan, weight).error ** 2
            assert error == pytest.approx(true, rel=1e-6 if exact else 0.2), (curve.key, rank)


def test_stand_in_keeps_a_low_rank():
    """A layer of Tucker rank (24, 24): its stand-in is reproduced at that rank too."""
    torch.manual_seed(0)
    core, left, right = torch.randn(24, 24, 3, 3), torch.randn(128, 24), torch.randn(128, 24)
    weight = torch.einsum("abkl,oa,ib->oikl", core, left, right).double()
    _, specs = conv(128, 128)
    (spec,), method = specs.values(), methods.get("tucker2")
    small = reduced(spec, weight, Norm(), Norm())(method.stages(spec, (24, 24), ""))
    assert small.weight.shape == (64, 64, 3, 3)
    assert small.error(spec, method, (24, 24), "", seed=0) < 1e-6
    assert small.error(spec, method, (16, 16), "", seed=0) > 0.1


@pytest.mark.parametrize("variant", ["spatial_first", "pointwise_first"])
def test_stand_in_has_as_many_groups_as_the_layer(variant):
    """A share of them would be one, which loses far less."""
    torch.manual_seed(0)
    weight = torch.randn(256, 256, 3, 3).double()
    _, specs = conv(256, 256)
    (spec,), method = specs.values(), methods.get("grouped")
    for rank in ((96, 2), (128, 4), (256, 8)):
        small = reduced(spec, weight, Norm(), Norm())(method.stages(spec, rank, variant))
        known = method.predicted_error(weight, rank, variant) or 0.0
        estimated = small.error(spec, method, rank, variant, seed=0)
        assert estimated == pytest.approx(known**2, rel=0.1), rank


def test_method_registered_elsewhere_has_a_curve(monkeypatch):
    class Own(Tucker2):
        name = "own"

    monkeypatch.setitem(base._registry, "own", Own())
    model, specs = conv(24, 16)
    found = curves(model, specs, ["own", "tucker2"], None)["0"]
    assert [curve.method for curve in found] == ["own", "tucker2"]
    assert found[0].error == found[1].error


def test_layers_that_share_a_weight_are_fitted_once(monkeypatch):
    model, _ = conv(16, 16)
    model.append(nn.Conv2d(16, 16, 3, bias=False))  # type: ignore[operator]
    model[1].weight = model[0].weight  # type: ignore[index, union-attr]
    specs = {s.spec.name: s.spec for s in find(model, torch.zeros(1, 16, 8, 8))}
    made = []
    monkeypatch.setattr(
        methods, "factorize", lambda layer, *a, _f=methods.factorize, **k: made.append(layer)
        or _f(layer, *a, **k),
    )  # fmt: skip
    cp, tucker2 = ("cp", "", ()), ("tucker2", "", ())
    found = curves(model, specs, {"0": [cp], "1": [cp, tucker2]}, None)
    assert {layer.spec.name for layer in made} == {"0"}
    assert len({(layer.method, layer.rank) for layer in made}) == len(made)
    assert [curve.method for curve in found["0"]] == ["cp"]
    assert [curve.method for curve in found["1"]] == ["cp", "tucker2"]
    assert found["0"][0].error == found["1"][0].error
    assert found["0"][0].macs[0] > found["1"][0].macs[0]  # of its own, smaller map


def test_of_widths_only_those_nearest_to_what_is_asked_for_are_fitted(monkeypatch):
    model, specs = conv(32, 32)
    every = {curve.family for curve in curves(model, specs, ["block_term"], None)["0"]}
    assert every == {(8,), (16,)}
    made = set()
    monkeypatch.setattr(
        methods, "factorize", lambda layer, *a, _f=methods.factorize, **k: made.add(layer.rank[1:])
        or _f(layer, *a, **k),
    )  # fmt: skip
    for asked, fitted in (((4, 8), [(8,)]), ((11, 100), [(8,), (16,)]), ((100,), [(16,)])):
        made.clear()
        keys = [("block_term", "", (width,)) for width in asked]
        found = curves(model, specs, {"0": keys}, None)["0"]
        assert sorted(curve.family for curve in found) == sorted(made) == fitted


# Curves with data


def test_curves_with_data_are_those_of_fits_and_tell_their_kernels():
    model = net()
    specs = specs_of(model)
    moments = calibrate.collect(model, specs, BATCHES)
    told: list[tuple[str, Fit]] = []
    found = curves(
        model, specs, ["spatial_svd", "cp"], iter(moments.layers.items()),
        on_fit=lambda name, fit: told.append((name, fit)),
    )  # fmt: skip
    assert set(found) == {"a", "b", "twice"}
    for name, of_layer in found.items():
        weight: Tensor = model.get_submodule(name).weight.detach().double()  # type: ignore
        fits = {(f.key, f.macs): f for n, f in told if n == name}
        assert any(f.key is None for n, f in told if n == name)
        for curve in of_layer:
            for macs, error in zip(curve.macs, curve.error, strict=True):
                fit = fits[curve.key, macs]
                assert error <= fit.error + 1e-12
                parts = moments.layers[name].fit
                off = Norm(parts.second).relative_error(weight, fit.kernel)
                assert fit.error <= 1.01
                if fit.bias is None:
                    assert fit.error == pytest.approx(off**2, rel=1e-6)


def test_calibration_that_lacks_a_layer_is_told():
    model = net()
    specs = specs_of(model)
    moments = calibrate.collect(model, {"a": specs["a"]}, BATCHES)
    with pytest.raises(DataError, match=r"^b: the calibration must have the moments"):
        curves(model, specs, ["spatial_svd"], moments.layers.items())


def test_large_layer_with_data_is_estimated_in_the_norm_of_its_outputs():
    """Inputs of low rank: far less is lost than the weight alone tells."""
    model, specs = conv(80, 80)
    mixing = torch.randn(80, 8, generator=torch.Generator().manual_seed(2))
    x = torch.einsum("ci,nihw->nchw", mixing, torch.randn(20, 8, 8, 8))
    moments = calibrate.collect(model, specs, [x])
    names = ["tucker2", "spatial_svd", "depthwise_pointwise"]
    known = {c.key: c for c in curves(model, specs, names, moments.layers.items())["0"]}
    blind = {c.key: c for c in curves(model, specs, names, None)["0"]}
    share = specs["0"].macs * 0.35
    assert known.keys() == blind.keys()
    for key in known:
        if key[0] != "depthwise_pointwise":  # it cannot use that the channels are mixed
            assert known[key].at(share) < 0.3 * blind[key].at(share), key


def test_estimates_with_data_are_near_the_errors_of_fits():
    """Inputs that are smooth, and whose channels have much in common."""
    model, specs = conv(72, 72)
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(72, 72, generator=generator) * 0.97 ** torch.arange(72)
    noise = F.avg_pool2d(torch.randn(60, 72, 12, 12, generator=generator), 3, 1)
    moments = calibrate.collect(model, specs, [torch.einsum("ci,nihw->nchw", mixing, noise)])
    names = ["tucker2", "spatial_svd", "channel_svd"]
    ratios = {}
    for curve in curves(model, specs, names, moments.layers.items())["0"]:
        macs, error = curve.macs[0], curve.error[0]
        rank = rank_at(methods.get(curve.method), specs["0"], curve, macs)
        plan = LayerPlan(specs["0"], curve.method, rank, curve.variant)
        made = fit_layer(plan, model[0], moments.layers["0"], seed=0)  # type: ignore[index]
        ratios[curve.key] = error / made.error**2
    assert all(0.7 < ratio < 1.5 for ratio in ratios.values()), ratios
