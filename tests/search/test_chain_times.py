"""Times between those that are measured, and what becomes of them when they are chosen."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from searching import Machine, installed, plain, prepared

from factorize import methods
from factorize.errors import BudgetError
from factorize.measure import Chain, ChainTime
from factorize.plan import Budget, Candidate
from factorize.search import chain_times
from factorize.search.chain_times import ChainTimes
from factorize.search.offers import Layer, Offer
from factorize.search.tables import Tables
from factorize.spec import ConvSpec, Size
from factorize.types import ConvSite

SPEC = ConvSpec("a", "conv2d", 64, 64, (3, 3), (1, 1), (1, 1), (1, 1), input_sizes=((8, 8),))
SVD = methods.get("spatial_svd")


class Line:
    """Times are a tenth of the MACs and a call besides; some chains are refused or slow."""

    beside = ()

    def __init__(self, *, refused: Sequence[int] = (), slow: Sequence[int] = ()) -> None:
        self.refused, self.slow = refused, slow
        self.measured: list[int] = []

    def times(self, spec: ConvSpec, chains: Sequence[Chain]) -> list[ChainTime | None]:
        found: list[ChainTime | None] = []
        dense = 100.0 + spec.macs / 10
        for chain in chains:
            rank = chain[0].out_channels
            time = 100.0 + sum(stage.macs for stage in chain) / 10
            if chain != (spec,):
                self.measured.append(rank)
                time *= 1000 if rank in self.slow else 1
            one = ChainTime(dense, time, dense / time, 0.9 * dense / time, 1.1 * dense / time)
            found.append(None if rank in self.refused else one)
        return found


def chains(ranks: Sequence[int]) -> list[list[Chain]]:
    return [[SVD.stages(SPEC, (rank,), SVD.variants[0])] for rank in ranks]


def test_chains_between_measured_ones_are_on_the_line() -> None:
    line, ranks = Line(refused=[48]), list(range(4, 84, 4))
    times = ChainTimes(line, [SPEC])  # type: ignore[arg-type]
    found = times.of_kinds(chains(ranks), ["one"] * len(ranks))
    assert sorted(line.measured) == [4, 44, 80]
    assert times.dense == 100 + SPEC.macs / 10
    [*truth] = Line().times(SPEC, [made[0] for made in chains(ranks)])
    for one, true, rank in zip(found, truth, ranks, strict=True):
        assert one
        assert true
        assert one.estimated == (rank not in line.measured)
        for name in ("dense", "chain", "speedup", "low", "high"):
            assert getattr(one.total, name) == pytest.approx(getattr(true, name))


def test_few_of_a_kind_are_all_measured_and_where_all_are_refused_there_is_no_estimate() -> None:
    line = Line(refused=range(100))
    ranks = [*range(4, 20, 4), *range(4, 84, 4)]
    kinds = ["few"] * 4 + ["many"] * 20
    found = ChainTimes(line, [SPEC]).of_kinds(chains(ranks), kinds)  # type: ignore[arg-type]
    assert found == [None] * 24
    assert sorted(line.measured) == sorted([*range(4, 20, 4), 4, 44, 80])


@pytest.mark.parametrize("fate", ["kept", "slow", "refused"])
def test_a_chosen_chain_is_measured(fate: str) -> None:
    line = Line(slow=[8] * (fate == "slow"), refused=[8] * (fate == "refused"))
    offers = [
        Offer("spatial_svd", (rank,), SVD.variants[0], 0, 0, 1.0, estimated=True)
        for rank in (8, 12)
    ]
    layer = Layer(SPEC, (), tuple(offers), SPEC.macs, SPEC.params, 1.0)
    tables = Tables(
        [ConvSite(SPEC)], {"a": layer}, {}, None, 0.0, 0, 0,  # type: ignore[arg-type]
        latency=line, never_slower=True,  # type: ignore[arg-type]
    )  # fmt: skip
    chosen = {"a": Candidate({}, 0.0, offers[0])}
    assert not tables.confirm(chosen)
    assert line.measured[-1] == 8
    now = {offer.rank: offer for offer in tables.layers["a"].offers}
    assert now[12,] is offers[1]
    if fate == "kept":
        assert not now[8,].estimated
        assert now[8,].time == line.times(SPEC, [chains([8])[0][0]])[0].chain  # type: ignore[union-attr]
        assert tables.confirm({"a": Candidate({}, 0.0, now[8,])})
    else:
        assert (8,) not in now
        assert (tables.layers["a"].slower is not None) == (fate == "slow")


def test_no_estimate_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine: Machine = installed(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(chain_times, "FEW", 0)
    monkeypatch.setattr(chain_times, "KNOTS", 2)
    search = prepared(machine, plain())
    for choice in (search.choose(Budget(speedup=1.5)), search.fastest(Budget(speedup=1.5))):
        assert choice.plan.factorized
        measured = {_nameless(chain) for _, _, chain in machine.timed}
        assert {_nameless(methods.chain_of(one)) for one in choice.plan.factorized} <= measured


def test_estimates_that_are_too_low_are_no_promise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The least time is that of measured chains: what it promises can be kept to."""
    machine: Machine = installed(monkeypatch, tmp_path / "cache")
    # The dearest of a kind alone is measured: the others are said to take as long.
    monkeypatch.setattr(chain_times, "_spread", lambda indices: [indices[-1]])
    search = prepared(machine, plain())
    at_size = machine.at_size

    def slower(chain: Sequence[ConvSpec], size: Size) -> float:
        return at_size(chain, size) * (1.6 if len(chain) > 1 else 1)

    monkeypatch.setattr(machine, "at_size", slower)  # than what was measured at first
    with pytest.raises(BudgetError, match="the most that was measured"):
        search.choose(Budget(speedup=50))
    assert search.choose(Budget(speedup=1.05)).plan.factorized


def _nameless(chain: Sequence[ConvSpec]) -> tuple[ConvSpec, ...]:
    return tuple(replace(stage, name="", input_sizes=()) for stage in chain)
