"""Curves of errors: rough looks at all kinds of chains, and fits of what is asked for."""

from __future__ import annotations

from itertools import pairwise
from math import inf
from statistics import median
from typing import Any

import convolutions
import pytest
import torch
from replaying import conv, offered, rank_near
from torch import nn

from factorize import find, methods
from factorize.methods import base
from factorize.methods.tucker2 import Tucker2
from factorize.search import curves as curves_module
from factorize.search.curves import FAR, LEARNED, LEVELLED, UNKNOWN, Curves
from factorize.search.error_curve import Curve, Key, curve_through, family_of, macs_of
from factorize.search.layer_errors import LayerErrors
from factorize.spec import ConvSpec, Rank
from factorize.tensor.effort import Effort, with_effort
from factorize.types import LayerPlan

CP: Key = ("cp", "", ())
TUCKER2: Key = ("tucker2", "", ())

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


# Fits and rough looks, without data


def true_error(model: nn.Module, spec: ConvSpec, key: Key, rank: Rank) -> float:
    """Of a fit as quick as those of a search."""
    weight: Any = model.get_submodule(spec.name).weight
    with with_effort(Effort.QUICK):
        return methods.factorize(LayerPlan(spec, key[0], rank, key[1]), weight).error ** 2


@pytest.mark.parametrize("channels", [(24, 16), (72, 96)])
def test_fits_without_data_are_those_of_factorize(channels: tuple[int, int]):
    """Exactly for small layers; within 20 % where they are estimated, which rough looks are not."""
    model, specs = conv(*channels)
    (spec,), chains = specs.values(), offered(specs, convolutions.square())
    curves = Curves(model, specs, chains, None)
    assert {key[0] for key in chains["0"]} == set(convolutions.square())
    rel = 1e-6 if max(channels) <= 64 else 0.2
    asked = [
        (key, rank_near(spec, key, ranks, 0.4))
        for key, ranks in chains["0"].items()
        if not curves.layers["0"].is_exact(key)
    ]
    before = [curves.error("0", key, macs_of(spec, key, rank)) for key, rank in asked]
    curves.fit(("0", key, rank) for key, rank in asked)
    for (key, rank), rough in zip(asked, before, strict=True):
        true = true_error(model, spec, key, rank)
        assert curves.error("0", key, macs_of(spec, key, rank)) == pytest.approx(true, rel=rel), key
        assert 1 / 2 < rough / true < 2, (key, rank)  # random weights: others are farther off


@pytest.mark.parametrize("channels", [(24, 16), (72, 96)])
def test_an_svd_is_exact_without_a_fit(channels: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    model, specs = conv(*channels)
    (spec,) = specs.values()
    chains = offered(specs, ["spatial_svd", "channel_svd", "depthwise_pointwise"])
    monkeypatch.setattr(LayerErrors, "_fit", None)
    monkeypatch.setattr(LayerErrors, "rough", None)
    curves = Curves(model, specs, chains, None)
    assert len(chains["0"]) >= 4
    for key, ranks in chains["0"].items():
        for rank in ranks[:: max(len(ranks) // 4, 1)]:
            macs = macs_of(spec, key, rank)
            true = true_error(model, spec, key, rank)
            assert curves.error("0", key, macs) == pytest.approx(true, rel=1e-6), (key, rank)
            assert curves.doubt("0", key, macs) == 1


def decaying(count: int, channels: int = 24) -> tuple[nn.Sequential, dict[str, ConvSpec]]:
    """Layers of one shape, of random weights whose spectra fall ever more steeply."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(count))
    )
    for index, layer in enumerate(model):
        falls = (1 - 0.03 * (index + 1)) ** torch.arange(channels)
        mix = [torch.linalg.qr(torch.randn(channels, channels))[0] * falls for _ in range(2)]
        with torch.no_grad():
            layer.weight.copy_(torch.einsum("oikl,ao,bi->abkl", layer.weight, *mix))  # type: ignore
    sites = find(model, torch.zeros(1, channels, 8, 8))
    return model, {site.spec.name: site.spec for site in sites}


def test_rough_looks_are_within_a_factor_of_three_and_fits_correct_them():
    """With spectra that fall: at random ones every look is right."""
    model, specs = decaying(1)
    (spec,), names = specs.values(), ["cp", "tucker2", "block_term", "grouped"]
    chains = offered(specs, names)
    curves = Curves(model, specs, chains, None)
    for key, ranks in chains["0"].items():
        for share in (0.25, 0.5, 0.75):
            rank = rank_near(spec, key, ranks, share)
            ratio = curves.error("0", key, macs_of(spec, key, rank))
            ratio /= true_error(model, spec, key, rank)
            assert 1 / 3 < ratio < 3, (key, rank, ratio)


@pytest.mark.parametrize("key", [CP, TUCKER2])
def test_a_rank_between_two_fits_is_estimated_within_a_fifth(key: Key):
    model, specs = decaying(1)
    (spec,), ranks = specs.values(), offered(specs, [key[0]])["0"][key]
    curves = Curves(model, specs, {"0": {key: ranks}}, None)
    ends = [rank_near(spec, key, ranks, share) for share in (0.25, 0.6)]
    between = rank_near(spec, key, ranks, 0.4)
    assert between not in ends
    curves.fit(("0", key, rank) for rank in ends)
    found = curves.error("0", key, macs_of(spec, key, between))
    assert found == pytest.approx(true_error(model, spec, key, between), rel=0.2)


def test_doubt_falls_with_what_is_fitted():
    model, specs = decaying(LEARNED + 1)
    chains = offered(specs, ["cp", "tucker2"])
    curves, last = Curves(model, specs, chains, None), str(LEARNED)
    ranks = chains["0"][CP]
    macs = [macs_of(specs["0"], CP, rank) for rank in ranks]
    for name in list(specs)[:LEARNED]:
        assert curves.doubt(name, CP, macs[0]) == curves.doubt(last, CP, macs[0]) == UNKNOWN
        curves.fit([(name, CP, ranks[0])])
    assert curves.doubt("0", CP, macs[0]) == curves.doubt("0", CP, macs[0] * 1.3) == 1
    assert curves.doubt("0", CP, macs[-1]) == FAR
    assert curves.doubt(last, CP, macs[0]) == LEVELLED
    assert curves.doubt(last, TUCKER2, macs[0]) == UNKNOWN


def test_fits_in_other_layers_tell_how_far_a_method_is_off(monkeypatch: pytest.MonkeyPatch):
    """Rough looks that are all three times too high."""
    real = LayerErrors.rough
    monkeypatch.setattr(LayerErrors, "rough", lambda *a: min(3 * real(*a), 1.0))
    model, specs = decaying(LEARNED + 1)
    chains, last = offered(specs, ["cp", "tucker2"]), str(LEARNED)
    curves = Curves(model, specs, chains, None, probes=(0.3,))
    rank = rank_near(specs["0"], CP, chains["0"][CP], 0.55)
    macs = macs_of(specs["0"], CP, rank)
    before = {key: curves.error(last, key, macs) for key in (CP, TUCKER2)}
    off = []
    for name in list(specs)[:LEARNED]:
        assert curves.error(last, CP, macs) == before[CP]  # a few could be chance
        rough = curves.error(name, CP, macs)
        curves.fit([(name, CP, rank)])
        off.append(curves.error(name, CP, macs) / rough)
    assert curves.error(last, CP, macs) == pytest.approx(before[CP] * median(off))
    assert median(off) < 0.5
    assert curves.error(last, TUCKER2, macs) == before[TUCKER2]


# Layers that are alike


def test_layers_of_one_shape_are_looked_at_once(monkeypatch: pytest.MonkeyPatch):
    looked: list[tuple[str, Key]] = []
    real = LayerErrors.rough

    def rough(self: LayerErrors, key: Key, rank: Rank) -> float:
        looked.append((self.spec.name, key))
        return real(self, key, rank)

    monkeypatch.setattr(LayerErrors, "rough", rough)
    model = nn.Sequential(
        *(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3)), nn.Conv2d(16, 20, 3, padding=1)
    )
    specs = {s.spec.name: s.spec for s in find(model, torch.zeros(1, 16, 8, 8))}
    chains = offered(specs, ["cp", "tucker2", "spatial_svd"])
    Curves(model, specs, chains, None)
    assert {name for name, _ in looked} == {"0", "3"}
    assert {key[0] for _, key in looked} == {"cp", "tucker2"}
    assert len(looked) <= len(curves_module.SHARES) * len(set(looked))
    looked.clear()
    Curves(model, specs, {**chains, "1": {CP: chains["1"][CP]}}, None)
    assert {name for name, _ in looked} == {"0", "1", "3"}  # other chains, another look


def test_of_layers_that_are_alike_probes_tell_the_levels():
    model, specs = decaying(4)
    (spec, *_), chains = specs.values(), offered(specs, ["tucker2", "cp"])
    blind = Curves(model, specs, chains, None)
    probed = Curves(model, specs, chains, None, probes=(0.3,))
    for key in (CP, TUCKER2):
        rank = rank_near(spec, key, chains["0"][key], 0.4)
        macs = macs_of(spec, key, rank)
        assert blind.error("3", key, macs) == blind.error("0", key, macs)
        true = true_error(model, specs["3"], key, rank)
        assert 1 / 3 < probed.error("3", key, macs) / true < 3
        assert blind.error("3", key, macs) > 3 * true


@pytest.mark.parametrize("probes", [(), (0.3,)])
def test_layers_of_zeros_that_are_alike_lose_nothing(probes: tuple[float, ...]):
    """As the last ones of residual blocks are before training."""
    model, specs = decaying(2)
    with torch.no_grad():
        for layer in model:
            layer.weight.zero_()  # type: ignore[union-attr, operator]
    chains = offered(specs, ["cp", "spatial_svd"])
    curves = Curves(model, specs, chains, None, probes=probes)
    for name in specs:
        for key, ranks in chains[name].items():
            assert curves.error(name, key, macs_of(specs[name], key, ranks[-1])) < 1e-6


# What can be offered


def test_method_registered_elsewhere_has_a_curve(monkeypatch: pytest.MonkeyPatch):
    class Own(Tucker2):
        name = "own"

    monkeypatch.setitem(base._registry, "own", Own())
    model, specs = conv(24, 16)
    chains = offered(specs, ["own", "tucker2"])
    curves, own = Curves(model, specs, chains, None), ("own", "", ())
    ranks = chains["0"][TUCKER2]
    assert chains["0"][own] == ranks
    sizes = [macs_of(specs["0"], TUCKER2, rank) for rank in ranks]
    for _ in range(2):
        for macs in sizes:
            assert curves.error("0", own, macs) == curves.error("0", TUCKER2, macs)
        curves.fit(("0", key, ranks[1]) for key in (own, TUCKER2))


def test_each_step_tells_how_far_it_is():
    told: list[tuple[str, int, int]] = []
    model, specs = decaying(2)
    chains = offered(specs, ["cp"])
    curves = Curves(model, specs, chains, None, progress=lambda *step: told.append(step[:3]))
    curves.fit([("0", CP, chains["0"][CP][0]), ("1", CP, chains["1"][CP][0])])
    assert told == [
        *(("look at layers", n, 2) for n in (1, 2)),
        *(("look at chains", n, 2) for n in (1, 2)),
        *(("fit chains", n, 2) for n in (1, 2)),
    ]
