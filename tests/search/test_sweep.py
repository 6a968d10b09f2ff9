"""Sweeps through speedups: the curve, and the point of it that is picked."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from searching import EXAMPLE, NETS, Machine, Tied, installed, plain, searched, shares
from torch import nn

from factorize import methods
from factorize.errors import BudgetError, RankError
from factorize.plan import Budget
from factorize.run.compress import Result
from factorize.search import SearchConfig
from factorize.search.prepare import prepare
from factorize.search.sweep import uniform

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch|onnxscript")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return installed(monkeypatch, tmp_path_factory.mktemp("machine"))


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is computed: one entry each time."""
    done: list[str] = []
    module = import_module("factorize.search.prepare")
    curves = module.Curves

    def counted(*args: Any, **options: Any) -> Any:
        done.append("curves")
        return curves(*args, **options)

    monkeypatch.setattr(module, "Curves", counted)
    return done


def swept(model: nn.Module, sweep: Any, pick: Any = "knee", **options: Any) -> Result:
    return searched(model, None, search=SearchConfig(sweep=sweep, pick=pick), **options)


@pytest.mark.parametrize("name", NETS)
def test_a_sweep_has_the_dense_net_the_points_and_uniform_ranks(
    machine: Machine, work: list[str], name: str
) -> None:  # fmt: skip
    model = NETS[name]()
    most = 1 / (1 - 0.6 * (1 - 1e6 / machine.net(model, EXAMPLE)))
    wanted = tuple(most ** (step / 3) for step in (3, 1, 2))  # in any order
    result = swept(model, wanted)
    curve = result.report.curve
    assert (curve[0].kind, curve[0].speedup, curve[0].macs, curve[0].params) == ("dense", 1, 1, 1)
    found = [point for point in curve if point.kind == "search"]
    assert [point.wanted for point in found] == sorted(wanted)
    assert all(point.speedup >= (point.wanted or 0) for point in found)
    assert [p.speedup for p in found] == sorted(p.speedup for p in found)
    for point, even in zip(found, [p for p in curve if p.kind == "uniform"], strict=True):
        assert even.macs <= point.macs
        assert even.macs < 1
    (picked,) = [point for point in curve if point.picked]
    assert picked in found
    assert (picked.macs, picked.params) == pytest.approx(shares(model, result.model))
    assert work == ["curves"]
    assert set(machine.timed.values()) == {1}


def test_uniform_ranks_are_one_share_in_all_layers_that_may_be_replaced():
    tables = prepare(Tied().eval(), EXAMPLE, names=["spatial_svd"]).tables
    plan = uniform(tables, "spatial_svd", 0.6 * tables.macs)
    assert {layer.spec.name for layer in plan.factorized} == {"a", "b", "last"}
    method = methods.get("spatial_svd")
    of = [layer.rank[0] / method.max_rank(layer.spec)[0] for layer in plan.factorized]
    assert max(of) - min(of) < 1 / 48
    left = tables.macs - sum(layer.spec.macs - layer.macs for layer in plan.layers)
    assert 0.55 * tables.macs < left <= 0.6 * tables.macs


def test_a_point_is_picked(machine: Machine):
    model = plain()
    for pick in (1.2, 1.6):
        result = swept(model, (1.2, 1.4, 1.6), pick)
        (picked,) = [point for point in result.report.curve if point.picked]
        assert picked.wanted == pick
        assert picked.macs == pytest.approx(shares(model, result.model)[0])
        assert result.report.search
        assert result.report.search.measured
        assert result.report.search.measured.speedup == pytest.approx(picked.speedup)


def test_the_knee_is_where_loss_begins_to_rise():
    sweep = import_module("factorize.search.sweep")

    def found(speed: float, loss: float, *, replaced: bool = True) -> Any:
        plan = SimpleNamespace(factorized=("a layer",) * replaced)
        return SimpleNamespace(choice=SimpleNamespace(measured_speedup=speed, plan=plan), loss=loss)

    flat_then_steep = {s: found(s, loss) for s, loss in
                       ((1.5, 0.010), (2.0, 0.011), (3.0, 0.013), (4.0, 1.0))}  # fmt: skip
    assert sweep._knee(flat_then_steep, "speedup") == 3.0
    assert sweep._knee({s: found(s, 0.1) for s in (1.5, 2.0)}, "speedup") == 2.0
    int8_alone = {s: found(1.4, 0.0, replaced=False) for s in (1.2, 1.3)}
    assert sweep._knee(int8_alone | flat_then_steep, "speedup") == 3.0
    assert sweep._knee(int8_alone, "speedup") == 1.3


@pytest.mark.parametrize(("sweep", "pick", "message"), [
    ((1.5, 2.0), 3.0, "pick must be knee or one of"),
    ((), 2.0, "pick must be knee or one of"),
    ((0.5, 2.0), "knee", "sweep must be speedups above 1"),
    ((float("nan"),), "knee", "sweep must be speedups above 1"),
])  # fmt: skip
def test_wrong_points_are_refused_before_any_work(sweep: Any, pick: Any, message: str):
    with pytest.raises(BudgetError, match=message):
        SearchConfig(sweep=sweep, pick=pick)


def test_a_curve_ends_where_nothing_is_faster(machine: Machine):
    result = swept(plain(), (1.3, 50.0, 60.0))
    assert [p.wanted for p in result.report.curve if p.kind == "search"] == [1.3]
    (note,) = [note for note in result.report.notes if "curve ends" in note]
    assert "before 50x: --speedup 50: the most that was measured" in note
    with pytest.raises(BudgetError, match="pick=50.*: the curve ends before 50x"):
        swept(plain(), (1.3, 50.0), 50.0)
    with pytest.raises(BudgetError, match=r"^Budget\(speedup=50\): the most"):
        swept(plain(), (50.0,))


def test_a_sweep_keeps_other_shares_and_refuses_other_speeds(machine: Machine):
    model = plain()
    result = searched(model, Budget(params=0.5), search=SearchConfig(sweep=(1.2, 1.4)))
    assert all(p.params <= 0.5 for p in result.report.curve if p.kind == "search")
    for budget in (Budget(speedup=1.5), Budget(max_drop=1.0)):
        with pytest.raises(RankError, match="a sweep goes through speedups itself"):
            searched(model, budget, search=SearchConfig(sweep=(1.2, 1.4)))
