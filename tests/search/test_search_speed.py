"""Searches for a speedup, on a machine whose times are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from searching import (
    EXAMPLE,
    NETS,
    NOISE,
    Machine,
    Residual,
    images,
    installed,
    plain,
    prepared,
    searched,
    shares,
)

from factorize import methods
from factorize.errors import BudgetError
from factorize.measure import ChainTime, default_cache_path
from factorize.plan import Budget
from factorize.search.fits import Fits
from factorize.search.held_out import Losses
from factorize.search.trials import Choice
from factorize.search.within_budget import MARGIN, Search
from factorize.types import Plan

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch|onnxscript")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return installed(monkeypatch, tmp_path_factory.mktemp("machine"))


# Time


@pytest.mark.parametrize("gain", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("name", NETS)
def test_the_built_net_is_as_fast_as_asked_for(machine: Machine, name: str, gain: float):
    machine.gain, model = gain, NETS[name]()
    # Less than the most that can be had at a gain of 0.7.
    most = machine.net(model, EXAMPLE)
    wanted = 1 / (1 - 0.35 * (1 - 1e6 / most))
    result = searched(model, Budget(speedup=wanted))
    search = result.report.search
    assert search
    assert search.measured
    assert search.reached
    assert wanted <= search.measured.speedup <= wanted * 1.15
    # The times of layers add up, so that only the gain makes the prediction wrong.
    original, compressed = (search.predicted_ms[key] for key in ("original", "compressed"))
    saved = (original - compressed) / (original - search.measured.compressed.median_ms)
    assert saved == pytest.approx(1 / gain)


@pytest.mark.parametrize("gain", [0.7, 1.0, 1.3])
def test_what_integers_gain_counts_towards_the_speedup(machine: Machine, gain: float):
    machine.gain, model = gain, plain()
    asked = 1.25
    alone = prepared(machine, model).choose(Budget(speedup=asked))
    machine.in_integers = 2.0
    search = prepared(machine, model)
    both = search.choose(Budget(speedup=2 * asked))
    assert both.plan.layers == alone.plan.layers
    assert both.measured_speedup == pytest.approx(2 * alone.measured_speedup)
    assert both.predicted == pytest.approx(2 * (alone.predicted or 0))
    enough = search.choose(Budget(speedup=1.9))
    assert not enough.plan.factorized
    assert enough.measured_speedup == pytest.approx(2.0)


def test_a_plan_of_less_loss_is_taken_where_more_is_gained_than_predicted(machine: Machine):
    losses = []
    for machine.gain in (1.3, 1.0, 0.7):
        losses.append(prepared(machine, plain()).choose(Budget(speedup=1.4)).loss)
    assert losses == sorted(losses)
    assert losses[0] < losses[1] < losses[2]


def test_no_chain_is_used_that_is_not_faster_than_its_layer(machine: Machine):
    machine.call = 60_000  # dear: the small layers cannot win
    result = searched(Residual().eval(), Budget(speedup=1.05), method="auto")
    replaced = result.plan.factorized
    assert replaced
    for layer in replaced:
        chain, dense = methods.chain_of(layer), (layer.spec,)
        assert machine.of(layer.spec, dense) / machine.of(layer.spec, chain) > NOISE
    stayed = {one.name: one for one in result.report.layers if not one.method}
    assert "no chain is faster on onnxruntime" in str(stayed["reduce"].skip_reason)
    assert (stayed["reduce"].ms or 0) > (stayed["reduce"].ms_original or 0) / NOISE


@pytest.mark.parametrize(("speedup", "words"), [
    (1.3, "onnxruntime, 1 thread, batch 1 beyond the noise: the best, spatial_svd 4, 1.30x "),
    (0.9, "onnxruntime, 1 thread, batch 1: the best, spatial_svd 4, 0.90x (0.40..1.60)"),
])  # fmt: skip
def test_why_a_layer_stays_does_not_contradict_itself(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, speedup: float, words: str
):
    """The chain's time and that of the layer were measured at different moments."""
    search = prepared(machine, plain(), names=["spatial_svd"])
    tables = search.tables
    name, layer = next(iter(tables.layers.items()))
    offer = replace(layer.offers[0], rank=(4,))
    time = ChainTime(5.0, 5 / speedup, speedup, 0.4, 1.6)
    stays = replace(layer, offers=(), slower=(offer, time))
    tables = replace(tables, layers={**tables.layers, name: stays})
    chosen = {one: options[0] for one, options in tables.candidates().items()}
    reasons = {one.spec.name: one.skip_reason for one in tables.plan(chosen).layers}
    assert f"no chain is faster on {words}" in str(reasons[name])


def test_with_macs_alone_slower_chains_are_used_and_told(machine: Machine):
    machine.call = 1e6
    result = searched(plain(), Budget(macs=0.5))
    bounds = [one.speedup_high for one in result.report.layers if one.method]
    assert bounds
    assert all(high is not None and high < 1 for high in bounds)


@pytest.mark.parametrize("budget", [Budget(speedup=1.2), Budget(max_drop=5.0)], ids=str)
def test_where_no_chain_is_faster_that_is_said(machine: Machine, budget: Budget, tmp_path: Path):
    machine.call = 1e9
    with pytest.raises(BudgetError, match="^not faster: no chain of any of 4 layers"):
        searched(plain(), budget, data=images(), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_out_of_reach_names_the_fastest_that_was_measured(machine: Machine):
    search = prepared(machine, plain())
    with pytest.raises(BudgetError, match="--speedup 50: the most that was measured") as caught:
        search.choose(Budget(speedup=50))
    most = search.fastest(Budget(speedup=50)).measured_speedup
    assert f"is {most:.2f}x" in str(caught.value)
    machine.gain = 0.5
    with pytest.raises(BudgetError, match="the most that was measured") as caught:
        search.choose(Budget(speedup=most * 0.99))  # in reach by the layers' times
    assert f"is {search.fastest(Budget(speedup=2)).measured_speedup:.2f}x" in str(caught.value)


def test_two_nets_are_timed_where_the_gain_is_steady_and_the_one_that_is_taken_twice(
    machine: Machine,
):
    for machine.gain in (0.7, 1.3):
        search = prepared(machine, plain())
        machine.nets = 0
        search.choose(Budget(speedup=1.4))
        assert machine.nets == 3
        search.choose(Budget(speedup=1.33))
        assert machine.nets == 5  # the gain is known by now


def test_more_timings_come_closer_to_what_is_asked_each_of_another_net_but_the_last(
    machine: Machine,
):
    search = prepared(machine, plain())
    machine.gain = 1.3  # far fewer layers than predicted will do
    timed, time = [], search.timed
    search.timed = lambda choice: timed.append(choice.plan) or time(choice)  # type: ignore[method-assign, func-returns-value]
    for wanted in (1.4, 1.3):
        timed.clear()
        choice = search.choose(Budget(speedup=wanted))
        assert wanted <= choice.measured_speedup <= wanted * MARGIN**2
        assert len({plan.layers for plan in timed}) == len(timed) - 1
        assert timed[-1].layers == timed[-2].layers == choice.plan.layers
    assert len(timed) > 2


def test_the_fastest_net_is_tried_before_giving_up(machine: Machine):
    search = prepared(machine, plain())
    machine.gain = 0.8
    most = search.fastest(Budget(speedup=2)).measured_speedup
    choice = search.choose(Budget(speedup=most * 0.999))
    assert choice.measured_speedup >= most * 0.999


def drifting(patch: pytest.MonkeyPatch, machine: Machine, gain: float) -> list[Plan]:
    """What is fitted, as it is judged; the machine's gain is another from then on."""
    losses, fits = Fits.losses, []

    def after_a_fit(self: Fits, plan: Plan, images: int) -> Losses:
        fits.append(plan)
        machine.gain = gain
        return losses(self, plan, images)

    patch.setattr(Fits, "losses", after_a_fit)
    return fits


@pytest.mark.parametrize("gain", [1.0, 0.5, 1.4])
def test_a_net_is_fitted_once_and_told_as_fast_as_it_is_then(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, gain: float
):
    """A fit changes no shape: what is slower after it is the machine."""
    fits = drifting(monkeypatch, machine, gain)
    result = searched(plain(), Budget(speedup=1.3), method="spatial_svd", data=images())
    search = result.report.search
    assert search
    assert search.measured
    assert len({plan.layers for plan in fits}) == 1
    assert [row["taken"] for row in search.trials] == [True]
    assert search.reached == (gain >= 1)
    assert search.measured.speedup == pytest.approx(search.trials[0]["measured_speedup"])
    if gain == 1.0:
        assert 1.3 <= search.measured.speedup <= 1.3 * MARGIN**2


def test_a_lucky_timing_is_confirmed_before_a_net_is_fitted(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
):
    """The first timing, and no other, says that the net is as fast as asked."""
    lucky: list[Plan] = []
    real = Search.timed

    def timed(self: Search, choice: Choice) -> Choice:
        found = real(self, choice)
        assert found.measured
        if lucky:
            return found
        lucky.append(choice.plan)
        assert found.measured_speedup < 1.3
        return replace(found, measured=replace(found.measured, speedup=1.31))

    machine.gain = 0.72
    monkeypatch.setattr(Search, "timed", timed)
    choice = prepared(machine, plain()).choose(Budget(speedup=1.3))
    assert choice.plan.layers != lucky[0].layers
    assert real(prepared(machine, plain()), choice).measured_speedup >= 1.3


def test_one_disturbed_timing_after_the_fit_is_not_what_is_told(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
):
    fits, real = drifting(monkeypatch, machine, 1.0), Search.timed
    disturbed: list[float] = []

    def timed(self: Search, choice: Choice) -> Choice:
        found = real(self, choice)
        if not fits or disturbed or found.measured is None:
            return found
        disturbed.append(found.measured_speedup)
        return replace(found, measured=replace(found.measured, speedup=0.7 * disturbed[0]))

    monkeypatch.setattr(Search, "timed", timed)
    result = searched(plain(), Budget(speedup=1.3), method="spatial_svd", data=images())
    assert disturbed
    assert result.report.search
    assert result.report.search.trials[0]["measured_speedup"] >= 1.3


def test_several_limits_are_kept_together(machine: Machine):
    model = plain()
    result = searched(model, Budget(speedup=1.3, macs=0.5, params=0.45))
    macs, params = shares(model, result.model)
    assert macs <= 0.5
    assert params <= 0.45
    assert result.report.measured
    assert result.report.measured.speedup >= 1.3
    with pytest.raises(BudgetError, match="macs=0.01"):
        searched(model, Budget(speedup=1.3, macs=0.01))


# The cache


def test_a_damaged_cache_is_a_note_in_the_report(machine: Machine):
    default_cache_path().write_bytes(b"not a database" * 100)
    result = searched(plain(), Budget(speedup=1.3))
    assert any(str(default_cache_path()) in note for note in result.report.notes)


def test_a_second_search_measures_no_chain_again(machine: Machine):
    first = searched(plain(), Budget(speedup=1.3)).report.search
    second = searched(plain(), Budget(speedup=1.5)).report.search
    assert first
    assert second
    assert first.chains_cached == 0
    # One that was only estimated may be chosen now.
    assert second.chains_timed < 0.1 * second.chains_cached
    assert set(machine.timed.values()) == {1}
    assert searched(plain(), Budget(speedup=1.5), refresh=True).report.search.chains_timed  # type: ignore[union-attr]
