"""Sweeps through shares of the MACs: several budgets in one run, each net timed as it is."""

from __future__ import annotations

import pytest
from searching import Machine, installed, plain, searched, shares

from factorize.errors import BudgetError, RankError
from factorize.fit import FitConfig
from factorize.plan import Budget
from factorize.search import SearchConfig

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch|onnxscript")

WEIGHTS = FitConfig("weights")  # in no time


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return installed(monkeypatch, tmp_path_factory.mktemp("machine"))


def test_each_share_is_kept_and_the_picked_one_is_the_result(machine: Machine):
    model = plain()
    result = searched(model, None, search=SearchConfig(shares=(0.4, 0.7, 0.55), pick=0.55))
    found = [point for point in result.report.curve if point.kind == "search"]
    assert [point.wanted for point in found] == [0.7, 0.55, 0.4]
    assert all(point.macs <= (point.wanted or 0) for point in found)
    assert all(point.speedup > 0 for point in result.report.curve)
    (picked,) = [point for point in found if point.picked]
    assert picked.wanted == 0.55
    assert picked.macs == pytest.approx(shares(model, result.model)[0])
    assert result.report.search
    assert result.report.search.budget == {"macs": 0.55}
    assert result.report.search.chains_timed == 0  # nets are timed, and no layers


def test_one_share_of_several_is_the_net_that_it_is_by_itself(machine: Machine):
    alone = searched(plain(), Budget(macs=0.5), fit=WEIGHTS)
    config = SearchConfig(shares=(0.5, 0.3), pick=0.5)
    among = searched(plain(), None, search=config, fit=WEIGHTS)
    assert [layer.rank for layer in among.plan.layers] == [
        layer.rank for layer in alone.plan.layers
    ]


def test_other_limits_are_kept_and_time_is_refused(machine: Machine):
    model, config = plain(), SearchConfig(shares=(0.6, 0.5))
    result = searched(model, Budget(params=0.5), search=config, fit=WEIGHTS)
    assert all(p.params <= 0.5 for p in result.report.curve if p.kind == "search")
    for budget in (Budget(speedup=1.5), Budget(max_drop=1.0)):
        with pytest.raises(RankError, match="a sweep goes through shares of MACs itself"):
            searched(model, budget, search=config)


@pytest.mark.parametrize(("options", "message"), [
    ({"shares": (0.5, 1.5)}, r"shares of MACs must be in \(0, 1\)"),
    ({"shares": (float("nan"),)}, r"shares of MACs must be in \(0, 1\)"),
    ({"shares": (0.5,), "sweep": (2.0,)}, "Leave one of them out"),
    ({"shares": (0.5, 0.3), "pick": 0.4}, "pick must be knee or one of"),
])  # fmt: skip
def test_wrong_shares_are_refused_before_any_work(options, message):
    with pytest.raises(BudgetError, match=message):
        SearchConfig(**options)


def test_a_curve_ends_where_no_chains_are_as_small(machine: Machine):
    result = searched(plain(), None, search=SearchConfig(shares=(0.5, 0.0001)), fit=WEIGHTS)
    assert [p.wanted for p in result.report.curve if p.kind == "search"] == [0.5]
    assert any("the curve ends before 0.0001 of MACs" in note for note in result.report.notes)
