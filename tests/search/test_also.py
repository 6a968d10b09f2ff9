"""One net for several targets: no layer slower on any, the times on each, and what each likes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from searching import EXAMPLE, Machine, installed, plain, searched

from factorize import compress
from factorize.errors import BudgetError
from factorize.measure import Chain, ChainTime, Target
from factorize.plan import Budget
from factorize.report import load_report
from factorize.report.words import likes_line, slower_layers
from factorize.run.make_plan import search_plan
from factorize.run.rounds import Selection, Wish
from factorize.search import SearchConfig, chain_times, likes, offers
from factorize.search.offers import Layer, Offer, confirmed, hardware_step, layers_of
from factorize.spec import ConvSpec, Size
from factorize.types import ConvSite

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch|onnxscript")
SPEC = ConvSpec("a", "conv2d", 32, 48, (3, 3), (1, 1), (1, 1), (1, 1), input_sizes=((12, 10),))
OTHER = Target("torch-cpu", threads=1)


class Fixed:
    """Stands for a latency model: speedups by rank."""

    def __init__(self, speedups: dict[int, float | None], *beside: Fixed) -> None:
        self.speedups, self.beside = speedups, beside
        self.target = Target(threads=1)

    def times(self, spec: ConvSpec, chains: Sequence[Chain]) -> list[ChainTime | None]:
        found: list[ChainTime | None] = []
        for one in chains:
            ratio = 1.0 if one == (spec,) else self.speedups.get(one[0].out_channels, 0.5)
            found.append(
                ChainTime(12.0, 12 / ratio, ratio, ratio - 0.1, ratio + 0.1) if ratio else None
            )
        return found


def layer_of(latency: Fixed, **changes: Any) -> Layer:
    options: dict[str, Any] = {
        "include": (), "exclude": (), "first": False, "never_slower": True, "progress": None,
        "target": latency.target, "latency": latency,
    } | changes  # fmt: skip
    return layers_of([ConvSite(SPEC)], ["spatial_svd"], **options)[0]["a"]


@pytest.fixture
def all_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_times, "FEW", 1000)


SMOOTH = {64: 1.25, 68: 12 / 10.2, 72: 12 / 10.8, 80: 1.0}  # the step is 4
COARSE = {64: 1.25, 68: 1.0, 72: 1.0, 80: 1.0}  # the step is 16


@pytest.mark.usefixtures("all_measured")
def test_what_is_slower_on_one_target_is_not_offered() -> None:
    here, there = {16: 3.0, 20: 2.0, 24: 2.0}, {16: 2.0, 20: 0.9, 24: None}
    for one, two in ((here, there), (there, here)):
        layer = layer_of(Fixed({**SMOOTH, **one}, Fixed({**SMOOTH, **two})))
        assert {offer.rank for offer in layer.offers} == {(16,)}
        assert {offer.time for offer in layer.offers} == {12 / (one[16] or 0)}  # of the first
        every = layer_of(Fixed({**SMOOTH, **one}, Fixed({**SMOOTH, **two})), never_slower=False)
        ranks = {offer.rank[0] for offer in every.offers}
        assert {16, 20} <= ranks
        assert 24 not in ranks  # refused by one of them


@pytest.mark.usefixtures("all_measured")
def test_why_a_layer_stays_is_told_of_the_target_where_a_chain_gains_least() -> None:
    layer = layer_of(Fixed({**SMOOTH, 16: 3.0, 20: 2.0}, Fixed({**SMOOTH, 16: 0.8, 20: 0.9})))
    assert layer.offers == ()
    assert layer.slower is not None
    offer, time = layer.slower
    assert (offer.rank, time.speedup) == ((20,), 0.9)


def test_ranks_are_on_the_coarsest_step() -> None:
    fine, coarse = Fixed(SMOOTH), Fixed(COARSE)
    assert (hardware_step(fine), hardware_step(coarse)) == (4, 16)  # type: ignore[arg-type]
    fast = dict.fromkeys((4, 8, 16, 20, 32), 1.5)
    for pair in (
        Fixed({**SMOOTH, **fast}, Fixed({**COARSE, **fast})),
        Fixed({**COARSE, **fast}, Fixed({**SMOOTH, **fast})),
    ):
        assert {offer.rank[0] % 16 for offer in layer_of(pair).offers} == {0}


@pytest.mark.parametrize("there", [2.0, 0.9, None])
def test_an_estimate_is_confirmed_on_each_target(there: float | None) -> None:
    pair = Fixed({8: 3.0}, Fixed({8: there}))
    offer = Offer("spatial_svd", (8,), "vertical_first", 0, 0, 1.0, estimated=True)
    layer = Layer(SPEC, (), (offer,), SPEC.macs, SPEC.params, 1.0)
    offer = replace(offer, variant=offers.methods.get("spatial_svd").variants[0])
    layer = replace(layer, offers=(offer,))
    found = confirmed(layer, offer, [SPEC], pair, never_slower=True)  # type: ignore[arg-type]
    assert [one.time for one in found.offers] == ([4.0] if there == 2.0 else [])
    assert (found.slower is None) == (there != 0.9)


@pytest.mark.usefixtures("all_measured")
def test_what_each_target_likes() -> None:
    pair = Fixed({**SMOOTH, 32: 1.5}, Fixed({**COARSE, 16: 3.0, 32: 0.9}))
    layer = layer_of(pair)
    one, two = likes.likes(pair, [layer, layer])  # type: ignore[arg-type]
    assert (one["step"], two["step"]) == (4, 16)
    assert one["methods"]["spatial_svd"] == {"layers": 2, "faster": 2, "speedup": 1.4}
    assert two["methods"]["spatial_svd"]["faster"] == 0  # 16 is too small a share to tell
    assert two["methods"]["spatial_svd"]["speedup"] < 1
    assert "each method is faster in some layer" in likes_line(one)
    assert "never faster: spatial_svd (0." in likes_line(two)


class Two(Machine):
    """On torch-cpu chains that begin with a whole column take longer than their layer."""

    def chains(
        self, target: Target, dense: Chain, chains: Sequence[Chain], size: Size
    ) -> list[ChainTime | None]:
        found = super().chains(target, dense, chains, size)
        if target.runtime != OTHER.runtime:
            return found
        return [
            ChainTime(one.dense, 2 * one.dense, 0.5, 0.49, 0.51)
            if one and chain[0].kernel == (3, 1)
            else one
            for one, chain in zip(found, chains, strict=True)
        ]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    installed(monkeypatch, tmp_path / "cache")
    machine = Two()
    machine.install(monkeypatch)
    return machine


def columns(layers: Any) -> set[str]:
    return {layer.spec.name for layer in layers if "vertical" in layer.variant}


def test_a_result_is_not_slower_anywhere_and_reported_everywhere(
    machine: Machine, tmp_path: Path
) -> None:
    alone = searched(plain(), Budget(speedup=1.3), method="spatial_svd")
    both = searched(plain(), Budget(speedup=1.3), method="spatial_svd", also=(OTHER,),
                    out=tmp_path / "out")  # fmt: skip
    report = load_report(tmp_path / "out" / "report.json")
    assert report.search
    assert report.search.reached
    assert [one["target"] for one in report.search.likes] == [
        "onnxruntime, 1 thread, batch 1", str(OTHER)
    ]  # fmt: skip
    assert len(report.speed) == 2
    replaced = [layer for layer in report.layers if layer.method]
    assert replaced
    for layer in replaced:
        assert layer.elsewhere.keys() == {str(OTHER)}
        assert layer.elsewhere[str(OTHER)]["speedup_low"] > 1
        assert (layer.speedup_low or 0) > 1
    assert slower_layers(report) == ()
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"{OTHER}: before" in page
    assert "channels in steps of" in page
    assert both.plan.layers != alone.plan.layers
    assert all(not layer.elsewhere for layer in alone.report.layers)


def test_a_net_that_is_slower_elsewhere_is_told_and_not_reached(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = machine.speedups

    def slow(files: Any, original: Any, compressed: Any, x: Any, targets: list[Target]) -> Any:
        if targets == [OTHER]:
            return [machine.speedup(1.0, 1.5)]
        return before(files, original, compressed, x, targets)

    monkeypatch.setattr("factorize.run.deliver.speedups", slow)
    report = searched(plain(), Budget(speedup=1.3), also=(OTHER,)).report
    assert report.search
    assert not report.search.reached
    assert any(one.startswith("slower than the original on") for one in report.notes)


def test_what_no_target_allows_is_said(machine: Machine) -> None:
    machine.call = 1e9
    with pytest.raises(BudgetError, match="^not faster: no chain of any of"):
        searched(plain(), Budget(speedup=1.3), also=(OTHER,))


def test_a_dry_run_has_the_times_on_each(machine: Machine) -> None:
    wish = Wish(None, Budget(speedup=1.3), SearchConfig(), Selection("spatial_svd"))
    found = search_plan(plain(), EXAMPLE, wish, target=Target(threads=1), also=(OTHER,))
    assert found.times
    assert all(one["elsewhere"].keys() == {str(OTHER)} for one in found.times.values())


def test_a_plan_is_timed_on_each_too(machine: Machine) -> None:
    report = compress(plain(), EXAMPLE, rank=4, target=Target(threads=1), also="torch-cpu").report
    assert len(report.speed) == 2
    assert any(layer.elsewhere for layer in report.layers)
    assert report.search is None
