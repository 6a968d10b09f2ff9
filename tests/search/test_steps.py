"""Budgets without time: ranks on the hardware's step, and ties, which go to fewer stages."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from searching import EXAMPLE, NETS, plain
from torch import nn

from factorize import methods
from factorize.errors import BudgetError
from factorize.measure import Target
from factorize.measure.runtimes.onnxruntime import OnnxRuntime
from factorize.plan import Budget
from factorize.search import within_budget
from factorize.search.error_curve import Key
from factorize.search.offers import TIE, Offer
from factorize.search.prepare import prepare
from factorize.search.tables import Tables
from factorize.search.within_budget import Choice, Search


def deep() -> nn.Module:
    """Eight layers, wide enough for steps of 16."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 48, 3, padding=1), nn.ReLU()]
    for _ in range(8):
        layers += [nn.Conv2d(48, 48, 3, padding=1, bias=False), nn.ReLU()]
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def search() -> Search:
    return prepare(deep(), EXAMPLE, names=["spatial_svd", "tucker2", "cp"])


def left(search: Search, choice: Choice, macs: float) -> float:
    """MACs of the budget that are not spent."""
    saved = sum(layer.spec.macs - layer.macs for layer in choice.plan.layers)
    return macs * search.tables.macs - (search.tables.macs - saved)


@pytest.mark.parametrize("macs", [0.3, 0.41, 0.5, 0.67, 0.8])
def test_ranks_keep_to_steps_and_leave_less_than_a_step(search: Search, macs: float):
    choice = search.choose(Budget(macs=macs))
    ranks = [layer.rank for layer in choice.plan.factorized]
    assert ranks
    assert all(rank % 16 == 0 for one in ranks for rank in one)
    method, spec = methods.get("spatial_svd"), choice.plan.factorized[0].spec
    one, two = (sum(s.macs for s in method.stages(spec, (r,), "")) for r in (16, 32))
    assert 0 <= left(search, choice, macs) < two - one


@pytest.mark.parametrize("macs", [0.3, 0.5, 0.8])
def test_steps_cost_no_more_loss_than_stated(
    search: Search, macs: float, monkeypatch: pytest.MonkeyPatch
):
    stepped = search.choose(Budget(macs=macs))
    monkeypatch.setattr(within_budget, "STEPPED", 0.0)
    free = search.choose(Budget(macs=macs))
    assert any(rank % 16 for layer in free.plan.factorized for rank in layer.rank)
    assert free.loss < stepped.loss < 1.25 * free.loss


def test_steps_give_way_where_they_cost_too_much():
    """One layer: the nearest multiple of 16 leaves a sixth of the budget."""
    layer = deep().get_submodule("2")
    search = prepare(nn.Sequential(layer), torch.zeros(1, 48, 9, 9), names=["spatial_svd"],
                     include=["0"])  # fmt: skip
    (layer,) = search.choose(Budget(macs=0.66)).plan.factorized
    assert layer.rank == (46,)  # the next one that is offered is 48
    (layer,) = search.choose(Budget(macs=0.67)).plan.factorized
    assert layer.rank == (48,)
    (layer,) = search.choose(Budget(macs=0.16)).plan.factorized  # no step is as small
    assert layer.rank == (11,)


def test_the_step_is_that_of_the_target(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(OnnxRuntime, "steps", (8, 4))
    search = prepare(deep(), EXAMPLE, names=["spatial_svd"], target=Target("onnxruntime"))
    offers = search.tables.layers["2"].offers
    assert {offer.rank[0] for offer in offers if offer.stepped} == set(range(8, 72, 8))


@pytest.mark.parametrize("name", NETS)
def test_a_budget_that_some_ranks_keep_is_kept(name: str, monkeypatch: pytest.MonkeyPatch):
    search = prepare(NETS[name](), EXAMPLE)
    monkeypatch.setattr(OnnxRuntime, "steps", (1,))
    free = prepare(NETS[name](), EXAMPLE)
    for macs in (0.1, 0.15, 0.2, 0.3, 0.4):
        try:
            lost = free.choose(Budget(macs=macs)).loss
        except BudgetError:
            continue
        choice = search.choose(Budget(macs=macs))
        assert left(search, choice, macs) >= 0
        assert choice.loss <= 1.25 * lost * (1 + 1e-9)


# Ties


class Known:
    """Stands for losses that fits told, which are less by cp."""

    def __init__(self, gain: float) -> None:
        self.gain = gain

    def loss(self, name: str, offer: Offer) -> float:
        return 1 - self.gain if offer.method == "cp" else 1.0

    def error(self, name: str, offer: Offer) -> float:
        return 0.1

    def doubt(self, name: str, offer: Offer) -> float:
        return 1.0

    def key(self, name: str, offer: Offer) -> Key:
        return offer.method, offer.variant, ()


@pytest.mark.parametrize(("gain", "taken"), [(0.0, "spatial_svd"), (0.5 * TIE, "spatial_svd"),
                                             (2 * TIE, "cp")])  # fmt: skip
@pytest.mark.parametrize("timed", [False, True])
def test_of_near_equal_losses_the_chain_of_fewer_stages_is_taken(
    gain: float, taken: str, timed: bool
):
    """Where no time was measured: losses alone decide else."""
    tables = prepare(plain(), EXAMPLE, names=["spatial_svd"]).tables
    name, layer = next(iter(tables.layers.items()))
    half, time = layer.macs // 2, 1.0 if timed else None
    offers = tuple(Offer(one, (16,), "", half, 100, time) for one in ("cp", "spatial_svd"))
    tables = Tables(
        tables.sites,
        {name: replace(layer, offers=offers)},
        {site.spec.name: "not asked for" for site in tables.sites if site.spec.name != name},
        Known(gain),  # type: ignore[arg-type]
        0.0,
        tables.macs,
        tables.params,
    )
    search = Search(tables, None, None)  # type: ignore[arg-type]
    choice = search.choose(Budget(macs=1 - 0.4 * layer.macs / tables.macs))
    (found,) = choice.plan.factorized
    assert found.method == ("cp" if timed and gain else found.method if timed else taken)
