"""What is offered to the search for each layer, by known times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from factorize import methods
from factorize.measure import ChainTime, Target
from factorize.measure.interleave import Chain
from factorize.measure.runtimes.onnxruntime import OnnxRuntime
from factorize.search import chain_times
from factorize.search.offers import PROBE, Layer, hardware_step, layers_of
from factorize.spec import ConvSpec
from factorize.types import ConvSite

SPEC = ConvSpec("a", "conv2d", 32, 48, (3, 3), (1, 1), (1, 1), (1, 1), input_sizes=((12, 10),))


class Times:
    """Stands for a latency model: speedups by rank."""

    beside = ()

    def __init__(self, speedups: dict[int, float | None]) -> None:
        self.speedups, self.target = speedups, Target(threads=1)

    def times(self, spec: ConvSpec, chains: Sequence[Chain]) -> list[ChainTime | None]:
        found: list[ChainTime | None] = []
        for one in chains:
            speedup = 1.0 if one == (spec,) else self.speedups.get(one[0].out_channels, 0.5)
            if speedup is None:
                found.append(None)
            else:
                found.append(ChainTime(12.0, 12 / speedup, speedup, speedup - 0.1, speedup + 0.1))
        return found


@pytest.mark.parametrize(
    ("ms", "step"),
    [
        ({64: 64, 68: 68, 72: 72, 80: 80}, 4),  # any multiple of 4 pays
        ({64: 64, 68: 71, 72: 72, 80: 80}, 4),  # within the noise
        ({64: 64, 68: 72, 72: 72, 80: 80}, 8),  # 68 costs what 72 costs
        ({64: 64, 68: 80, 72: 80, 80: 80}, 16),
        ({64: 64, 68: 64, 72: 76, 80: 80}, 16),  # 72 is off the line, whatever 68 does
        ({64: 64, 68: None, 72: 72, 80: 80}, 8),
        ({64: 64, 68: 68, 72: None, 80: 80}, 16),
        ({64: None, 68: None, 72: None, 80: None}, 16),
    ],
)
def test_hardware_step(ms, step):
    assert PROBE.in_channels > 80
    speedups = {rank: time and 12 / time for rank, time in ms.items()}
    assert hardware_step(Times(speedups)) == step  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("steps", "step"), [((16, 8, 4), 8), ((16, 8), 8), ((8, 4), 8), ((32, 16), 16), ((1,), 1)]
)
def test_steps_are_those_of_the_runtime(monkeypatch, steps, step):
    monkeypatch.setattr(OnnxRuntime, "steps", steps)
    times = {64: 64, 65: 65, 68: 72, 72: 72, 80: 80, 96: 96}  # 68 costs what 72 costs
    found = hardware_step(Times({rank: 12 / time for rank, time in times.items()}))  # type: ignore[arg-type]
    assert found == step


def site(name: str, tied: tuple[str, ...] = (), blocked: str | None = None, **changes) -> ConvSite:
    return ConvSite(replace(SPEC, name=name, **changes), tied=tied, blocked=blocked)


def offered(sites: list[ConvSite], times: Times | None, **changes):
    options = {
        "include": (), "exclude": (), "first": False, "never_slower": True, "progress": None,
        "target": Target(threads=1),
    } | changes  # fmt: skip
    return layers_of(sites, ["spatial_svd"], latency=times, **options)  # type: ignore[arg-type]


def ranks(layer: Layer) -> set[int]:
    return {option.rank[0] for option in layer.offers}


SMOOTH = {64: 1.25, 68: 12 / 10.2, 72: 12 / 10.8, 80: 1.0}  # the step is 4


@pytest.fixture
def all_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_times, "FEW", 100)


@pytest.mark.usefixtures("all_measured")
def test_never_slower_leaves_out_what_is_not_faster_by_more_than_the_noise():
    times = Times({**SMOOTH, 16: 3.0, 20: 1.05, 24: None})
    found, _ = offered([site("a")], times)
    assert ranks(found["a"]) == {16}
    assert {option.time for option in found["a"].offers} == {4.0}
    assert found["a"].dense == 12.0
    assert found["a"].slower is None
    every, _ = offered([site("a")], times, never_slower=False)
    assert {16, 20} < ranks(every["a"])
    assert 24 not in ranks(every["a"])  # the runtime refuses it: nobody gets it
    assert every["a"].slower is None


@pytest.mark.usefixtures("all_measured")
def test_the_fastest_of_slower_chains_is_kept_for_the_report():
    found, reasons = offered([site("a")], Times({**SMOOTH, 16: 1.05, 20: 0.9}))
    assert found["a"].offers == ()
    assert found["a"].slower is not None
    offer, time = found["a"].slower
    assert offer.rank == (16,)
    assert replace(time, low=0, high=0) == ChainTime(12.0, 12 / 1.05, 1.05, 0, 0)
    assert (time.low, time.high) == pytest.approx((0.95, 1.15))
    assert reasons == {}


def test_ranks_keep_to_the_hardwares_steps():
    wide = site("a", in_channels=128, out_channels=128)
    found, _ = offered([wide], Times({**SMOOTH, 68: 1.0, 72: 1.0}), never_slower=False)
    assert len(ranks(found["a"])) >= 3
    assert all(rank % 16 == 0 for rank in ranks(found["a"]))


@pytest.mark.parametrize("steps", [(16, 8, 4), (32, 16), (1,)])
def test_ranks_that_are_not_timed_are_on_the_runtimes_step_or_between(monkeypatch, steps):
    monkeypatch.setattr(OnnxRuntime, "steps", steps)
    layer = offered([site("a", in_channels=128, out_channels=128)], None)[0]["a"]
    on = {option.rank[0] for option in layer.offers if option.stepped}
    between = ranks(layer) - on
    assert len(on) >= 3
    assert all(rank % steps[0] == 0 for rank in on)
    assert any(rank % 4 for rank in between) or steps == (1,)
    assert len(layer.offers) == len({(o.rank, o.variant) for o in layer.offers})
    assert all(option.time is None for option in layer.offers)
    assert all(option.macs < layer.spec.macs for option in layer.offers)


def test_a_layer_too_small_for_the_step_has_ranks_on_half_of_it():
    layer = offered([site("a", in_channels=16, out_channels=16)], None)[0]["a"]
    on = {option.rank[0] for option in layer.offers if option.stepped}
    assert on == {4, 8, 12, 16, 20}


@pytest.mark.usefixtures("all_measured")
def test_tied_layers_are_one():
    sites = [site("a", ("b",)), site("x"), site("b", ("a",))]
    found, reasons = offered(sites, Times({**SMOOTH, 16: 3.0}))
    assert found.keys() == {"a", "x"}
    assert (found["a"].tied, found["x"].tied) == (("b",), ())
    assert found["a"].dense == 2 * found["x"].dense == 24.0
    assert {option.time for option in found["a"].offers} == {8.0}
    assert reasons == {}


def test_which_layers_may_be_replaced():
    sites = [
        site("first", in_channels=3),
        site("pointwise", kernel=(1, 1), padding=(0, 0)),
        site("grouped", groups=2),
        site("blocked", blocked="has a hook"),
        site("last"),
    ]
    seen: list[tuple[str, int, int]] = []
    found, reasons = offered(
        sites, None, progress=lambda stage, done, total, values: seen.append((stage, done, total))
    )
    assert found.keys() == {"pointwise", "last"}
    assert reasons["first"].startswith("reads only")
    assert reasons["grouped"].startswith("groups=2: a budget is for")
    assert reasons["blocked"] == "has a hook"
    assert seen[-1][0] == "time layers"
    assert seen[-1][1] == seen[-1][2]
    assert "first" in offered(sites, None, first=True)[0]
    assert offered(sites, None, include=("last",))[0].keys() == {"last"}
    assert offered(sites, None, include=("first",))[0].keys() == {"first"}  # asked for by name
    found, reasons = offered(sites, None, exclude=("last", "point*"))
    assert found == {}
    assert reasons["last"] == "matched by --exclude"


def test_a_1x1_is_offered_no_more_than_two_in_a_row() -> None:
    """Three are a matrix of no higher rank at more MACs."""
    spec = replace(SPEC, kernel=(1, 1), padding=(0, 0), in_channels=64, out_channels=64)
    layers, _ = layers_of(
        [ConvSite(spec)], methods.names(), include=(), exclude=(), first=False,
        target=Target(threads=1), latency=None, never_slower=False, progress=None,
    )  # fmt: skip
    offers = layers["a"].offers
    assert "channel_svd" in {offer.method for offer in offers}
    for offer in offers:
        assert len(methods.get(offer.method).stages(spec, offer.rank, offer.variant)) <= 2
    three, _ = layers_of(
        [ConvSite(SPEC)], ["tucker2"], include=(), exclude=(), first=False,
        target=Target(threads=1), latency=None, never_slower=False, progress=None,
    )  # fmt: skip
    assert three["a"].offers
