"""Searches within budgets of MACs and parameters, and what they choose from."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import convolutions
import pytest
from searching import EXAMPLE, NETS, Residual, Tied, images, plain, searched, shares

from factorize import FitConfig, compress
from factorize.errors import BudgetError, NoConvolutionError, PlanError, RankError
from factorize.measure import count
from factorize.measure.runtimes.onnxruntime import OnnxRuntime
from factorize.methods import base
from factorize.methods.spatial_svd import SpatialSvd
from factorize.plan import Budget
from factorize.search.prepare import prepare
from factorize.types import Plan

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch|onnxscript")


@pytest.mark.parametrize("budget", [Budget(macs=0.5), Budget(params=0.6),
                                    Budget(macs=0.7, params=0.4)], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", NETS)
def test_the_built_net_keeps_shares_of_macs_and_parameters(name: str, budget: Budget):
    model = NETS[name]()
    result = searched(model, budget, method="auto", latency=False)
    macs, params = shares(model, result.model)
    assert macs <= (budget.macs or 1)
    assert params <= (budget.params or 1)
    # And spends them: ranks are integers, layers few.
    assert macs > (budget.macs or 0) - 0.1 or params > (budget.params or 0) - 0.1
    saved = sum(layer.spec.macs - layer.macs for layer in result.plan.layers)
    assert 1 - macs == pytest.approx(saved / count(model, EXAMPLE).macs)


def test_a_tied_weight_that_stays_in_an_excluded_layer_is_not_saved():
    model = Tied().eval()
    result = searched(model, Budget(params=0.8), exclude=["b"], latency=False)
    assert [layer.spec.name for layer in result.plan.factorized] == ["last"]
    assert shares(model, result.model)[1] <= 0.8
    with pytest.raises(BudgetError, match="cannot be kept"):
        searched(model, Budget(params=0.9), include=["a"], latency=False)


def test_only_the_methods_of_a_list_are_used():
    result = searched(plain(), Budget(macs=0.4), method="channel_svd, depthwise_pointwise",
                      latency=False)  # fmt: skip
    used = {layer.method for layer in result.plan.factorized}
    assert used
    assert used <= {"channel_svd", "depthwise_pointwise"}


@pytest.mark.parametrize("macs", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("name", ["plain", "residual", "tied at two sizes"])
def test_the_mix_is_predicted_to_lose_no_more_than_any_method_by_itself(
    name: str, macs: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(OnnxRuntime, "steps", (1,))  # for methods of coarser steps it may
    search = prepare(NETS[name](), EXAMPLE)
    mixed = search.choose(Budget(macs=macs)).loss
    alone = {}
    for method in convolutions.square():
        try:
            choice = search.choose(Budget(macs=macs), only=method)
        except BudgetError:
            continue
        assert {layer.method for layer in choice.plan.factorized} == {method}
        alone[method] = choice.loss
    assert len(alone) > 2
    assert mixed <= min(alone.values()) * (1 + 1e-9)


def test_a_newly_registered_method_is_searched(monkeypatch: pytest.MonkeyPatch):
    class Mine(SpatialSvd):
        name = "mine"

    monkeypatch.setitem(base._registry, "mine", Mine())
    tables = prepare(plain(), EXAMPLE).tables
    layers = [one for one in tables.layers.values() if one.spec.kernel]  # it has spatial axes
    assert layers
    assert all("mine" in {o.method for o in layer.offers} for layer in layers)
    result = searched(plain(), Budget(macs=0.5), method="mine", latency=False)
    assert {layer.method for layer in result.plan.factorized} == {"mine"}


def test_include_and_exclude_are_respected():
    model = Residual().eval()
    only = searched(model, Budget(macs=0.9), include=["stem", "conv"], latency=False)
    assert {layer.spec.name for layer in only.plan.factorized} <= {"stem", "conv"}
    without = searched(
        model, Budget(macs=0.9), exclude=["conv"], latency=False, fit=FitConfig("weights")
    )
    reasons = {layer.spec.name: layer.skip_reason for layer in without.plan.layers}
    assert reasons["conv"] == "matched by --exclude"
    assert "reads only" in str(reasons["stem"])
    with pytest.raises(NoConvolutionError, match="include="):
        searched(model, Budget(macs=0.9), include=["nothing*"], latency=False)
    with pytest.raises(NoConvolutionError, match="exclude="):
        searched(model, Budget(macs=0.9), exclude=["*"], latency=False)


def test_first_layers_are_searched_where_images_tell_what_that_loses():
    names = [prepare(plain(), EXAMPLE, names=["spatial_svd"], data=data).tables.layers
             for data in (None, images())]  # fmt: skip
    assert set(names[1]) - set(names[0]) == {"0"}


@pytest.mark.parametrize("budget", [Budget(macs=0.02), Budget(params=0.1),
                                    Budget(macs=0.9, params=0.1)], ids=str)  # fmt: skip
def test_a_budget_that_cannot_be_kept_says_what_can(budget: Budget, tmp_path: Path):
    model = Residual().eval()
    with pytest.raises(BudgetError, match="cannot be kept") as caught:
        searched(model, budget, latency=False, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    told = str(caught.value).partition("nearest that can is")[2]
    can = {key: float(share) for key, share in re.findall(r"(macs|params)=([\d.]+\d)", told)}
    assert set(can) == {key for key in ("macs", "params") if getattr(budget, key)}
    macs, params = shares(model, searched(model, Budget(**can), latency=False).model)
    assert macs <= can.get("macs", 1)
    assert params <= can.get("params", 1)
    asked = replace(budget, **{key: share - 0.002 for key, share in can.items()
                               if share > getattr(budget, key)})  # fmt: skip
    with pytest.raises(BudgetError, match="cannot be kept"):
        searched(model, asked, latency=False)


@pytest.mark.parametrize("rule", [{"rank": 4}, {"energy": 0.9}, {"allow_costlier": True}])
def test_a_budget_refuses_rules_for_ranks(rule: dict[str, Any]):
    with pytest.raises(RankError, match="budget chooses"):
        searched(plain(), Budget(macs=0.5), **rule)
    with pytest.raises(PlanError, match="Leave the budget out"):
        compress(plain(), EXAMPLE, budget=Budget(macs=0.5), plan=Plan((), {}))
