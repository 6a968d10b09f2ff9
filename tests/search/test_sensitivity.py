"""How much of what a layer loses the net loses, and losses that add up."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from math import inf, log
from typing import Any

import pytest
import torch
from replaying import BATCHES, IMAGES, conv, net, offered, rank_near, specs_of

from factorize import calibrate
from factorize.search.curves import Curves
from factorize.search.error_curve import Fit, Key, macs_of
from factorize.search.losses import Losses, key_of, kinds_of
from factorize.search.offers import Layer, Offer
from factorize.search.replay import Replay
from factorize.search.sensitivity import Divergences, Reaches
from factorize.spec import ConvSpec, Rank
from factorize.system.stopwatch import Stopwatch

# Reach


@pytest.mark.parametrize("mute", [False, True])
def test_reach_is_nothing_where_nothing_comes_out(mute: bool):
    model = net(mute=mute)
    specs = specs_of(model)
    reaches = Reaches(Replay(model, BATCHES))
    moments = calibrate.collect(model, specs, BATCHES)
    Curves(model, specs, offered(specs, ["channel_svd"]), moments.layers.items(),
           on_fit=reaches, probes=reaches.probes)  # fmt: skip
    assert set(reaches.by_name) == set(specs)
    assert (reaches.by_name["b"] == 0) == (reaches.by_name["a"] == 0) == mute
    assert reaches.by_name["twice"] > 0


def test_reach_is_that_of_a_copy_of_the_net_with_the_probe():
    model = net()
    specs = specs_of(model)
    reaches, told = Reaches(Replay(model, BATCHES)), dict[str, Fit]()

    def on_fit(name: str, fit: Fit) -> None:
        reaches(name, fit)
        if fit.key is None:
            told[name] = fit

    chains = offered(specs, ["spatial_svd", "cp"])
    curves = Curves(model, specs, chains, None, on_fit=on_fit, probes=reaches.probes)
    curves.fit(("a", key, ranks[0]) for key, ranks in chains["a"].items())  # which aren't probes
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.a.weight.copy_(told["a"].kernel)  # type: ignore[arg-type]
        wanted, got = model(IMAGES).double(), other(IMAGES).double()
    moved = (got - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    assert reaches.by_name["a"] == pytest.approx(float(moved) / told["a"].error, rel=1e-3)


# Divergences


def test_divergences_are_measured_of_all_kernels_that_are_fitted():
    model = net()
    specs, replay = specs_of(model), Replay(model, BATCHES)
    divergences, told = Divergences(replay), list[tuple[str, Fit]]()

    def on_fit(name: str, fit: Fit) -> None:
        divergences(name, fit)
        told.append((name, fit))

    chains = offered(specs, ["spatial_svd", "tucker2"])
    curves = Curves(
        model, specs, chains, None, on_fit=on_fit, probes=divergences.probes,
        kernels=divergences.kernels,
    )  # fmt: skip
    assert {name: len(probed) for name, probed in divergences.probed.items()} == {
        name: len(divergences.probes) for name in specs
    }
    asked = [
        (name, key, rank_near(specs[name], key, ranks, 0.4))
        for name, of_layer in chains.items()
        for key, ranks in of_layer.items()
    ]
    told.clear()
    curves.fit(asked)
    assert len(told) == len(asked)
    for name, fit in told:
        assert fit.key is not None
        assert fit.kernel is not None
        wanted = replay.divergence(name, fit.kernel, fit.bias)
        assert divergences.divergence(name, fit.key, fit.macs, 0.123) == wanted
    for name, key, rank in asked:  # and near a kernel what it lost tells most
        macs = macs_of(specs[name], key, rank)
        here = divergences.divergence(name, key, macs, 0.0)
        beside = divergences.divergence(name, key, macs + 1, curves.error(name, key, macs))
        assert beside == pytest.approx(here, rel=0.01)


def test_divergence_where_only_an_error_is_known_lies_between_those_of_the_probes():
    divergences, key = Divergences(None), ("cp", "", ())  # type: ignore[arg-type]
    divergences.probed["x"] = [(0.4, 0.8), (0.1, 0.05)]
    errors = (0.8, 0.4, 0.2, 0.1, 0.05)
    found = [divergences.divergence("x", key, 100, error) for error in errors]
    assert found == pytest.approx((1.6, 0.8, 0.2, 0.05, 0.025))
    # A kernel that lost twice as much as its error says: those near it will too.
    divergences.measured["x", key] = {100: (0.2, 0.4)}
    found = [divergences.divergence("x", key, 200, error) for error in errors]
    assert found == pytest.approx((3.2, 1.6, 0.4, 0.1, 0.05))
    assert divergences.divergence("x", ("cp", "other", ()), 200, 0.2) == pytest.approx(0.2)
    divergences.measured["x", key][400] = (0.1, 0.05)
    between = divergences.divergence("x", key, 200, 0.2)
    assert between == pytest.approx(0.2 * 2**0.5)


# Losses


class Known:
    """Stands for curves: errors that are told, and lowered by fits."""

    def __init__(self, error: float) -> None:
        self.told, self.asked = error, list[tuple[str, Key, Rank]]()

    def error(self, name: str, key: Key, macs: float) -> float:
        return self.told

    def doubt(self, name: str, key: Key, macs: float) -> float:
        return 2.0

    def fit(self, asked: Iterable[tuple[str, Key, Rank]]) -> None:
        self.asked += asked
        self.told /= 2


def layer_of(spec: ConvSpec, uses: int = 1) -> Layer:
    """A layer of so many uses, and two chains of two widths for it."""
    offers = []
    for rank in ((32, 16), (16, 8), (32, 8)):
        macs = uses * macs_of(spec, ("block_term", "", (rank[1],)), rank)
        offers.append(Offer("block_term", rank, "", macs, 0))
    tied = tuple(f"{spec.name} {use}" for use in range(1, uses))
    return Layer(spec, tied, tuple(offers), uses * spec.macs, spec.params, 0.0)


def losses(known: Any, watch: Any, uses: int = 1) -> tuple[Losses, Layer]:
    _, specs = conv(32, 32)
    layer = layer_of(specs["0"], uses)
    return Losses({"0": layer}, known, watch, Stopwatch()), layer


def test_loss_adds_up_by_what_is_kept_and_weighs_by_what_comes_out():
    reaches = Reaches(None, {"0": 2.0})  # type: ignore[arg-type]
    for watch, wanted in ((None, -log(0.75)), (reaches, -2 * log(0.75))):
        found, layer = losses(Known(0.25), watch)
        assert found.loss("0", layer.offers[0]) == pytest.approx(wanted)
        assert found.error("0", layer.offers[0]) == 0.25
        assert found.doubt("0", layer.offers[0]) == 2


@pytest.mark.parametrize("error", [1.0, 2.0])
def test_all_that_is_lost_is_still_a_number(error: float):
    found, layer = losses(Known(error), None)
    assert 0 < found.loss("0", layer.offers[0]) < inf


def test_a_fit_is_of_the_chain_and_changes_its_loss():
    known = Known(0.5)
    found, layer = losses(known, None)
    before = found.loss("0", layer.offers[0])
    assert found.loss("0", layer.offers[0]) == before == -log(0.5)
    found.fit([("0", layer.offers[0])])
    assert known.asked == [("0", ("block_term", "", (16,)), (32, 16))]
    assert found.loss("0", layer.offers[0]) == -log(0.75)


def test_measured_divergences_are_losses():
    """Of a layer of two uses: a curve is by the MACs of one."""
    divergences = Divergences(None)  # type: ignore[arg-type]
    divergences.probed["0"] = [(0.5, 1.0), (0.1, 0.1)]
    found, layer = losses(Known(0.5), divergences, uses=2)
    offer = layer.offers[0]
    assert found.loss("0", offer) == 1.0
    key, macs = key_of(layer.spec, offer), offer.macs // 2
    divergences.measured["0", key] = {macs: (0.5, 3.0)}
    found.fit([])
    assert found.loss("0", offer) == 3.0


def test_kinds_are_what_does_not_grow_with_the_rank_the_cheapest_first():
    _, specs = conv(32, 32)
    assert kinds_of(layer_of(specs["0"])) == {
        ("block_term", "", (8,)): [(16, 8), (32, 8)],
        ("block_term", "", (16,)): [(32, 16)],
    }
