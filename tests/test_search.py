"""Searches within budgets, on a machine whose times are known."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import convolutions
import pytest
import torch
from searching import EXAMPLE, NETS, NOISE, TARGET, Machine, Residual, Tied, images, plain
from torch import nn

from factorize import compress, methods
from factorize.api import Result
from factorize.errors import BudgetError, DataError, NoConvolutionError, PlanError, RankError
from factorize.methods import base
from factorize.methods.spatial_svd import SpatialSvd
from factorize.plan import Budget
from factorize.search import SearchConfig
from factorize.search.drop import fastest
from factorize.search.options import Option
from factorize.search.prepare import prepare
from factorize.search.search import Search
from factorize.search.sweep import uniform
from factorize.types import Plan

measure = import_module("factorize.measure")  # `factorize.measure` is a function too
count, default_cache_path = measure.count, measure.default_cache_path
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch|onnxscript")
QUICK = "spatial_svd,channel_svd"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    machine = Machine()
    machine.install(monkeypatch)
    monkeypatch.setenv("FACTORIZE_CACHE", str(tmp_path_factory.mktemp("machine")))
    # What is exported is other tests' matter.
    export = import_module("factorize.export")
    monkeypatch.setattr(export, "export_all", lambda *_: (None, {}, []))
    return machine


def searched(model: nn.Module, budget: Budget | None, **options: Any) -> Result:
    return compress(
        model, EXAMPLE, budget=budget, target=TARGET, **{"method": QUICK, **options}
    )  # fmt: skip


def prepared(machine: Machine, model: nn.Module, **options: Any) -> Search:
    options = {"names": QUICK.split(","), "never_slower": True, **options}
    return prepare(model, EXAMPLE, latency=machine.latency(), **options)


def shares(before: nn.Module, after: nn.Module) -> tuple[float, float]:
    """Of MACs and parameters that are left in a real net."""
    (params, macs), (left, cheaper) = count(before, EXAMPLE), count(after, EXAMPLE)
    return cheaper / macs, left / params


# MACs and parameters


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
    assert 1 - macs == pytest.approx(saved / count(model, EXAMPLE)[1])


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
def test_the_mix_is_predicted_to_lose_no_more_than_any_method_by_itself(name: str, macs: float):
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
    assert all("mine" in {o.method for o in layer.options} for layer in layers)
    result = searched(plain(), Budget(macs=0.5), method="mine", latency=False)
    assert {layer.method for layer in result.plan.factorized} == {"mine"}


def test_include_and_exclude_are_respected():
    model = Residual().eval()
    only = searched(model, Budget(macs=0.9), include=["stem", "conv"], latency=False)
    assert {layer.spec.name for layer in only.plan.factorized} <= {"stem", "conv"}
    without = searched(model, Budget(macs=0.9), exclude=["conv"], latency=False)
    reasons = {layer.spec.name: layer.skip_reason for layer in without.plan.layers}
    assert reasons["conv"] == "matched by --exclude"
    assert "first layer" in str(reasons["stem"])
    with pytest.raises(NoConvolutionError, match="--include"):
        searched(model, Budget(macs=0.9), include=["nothing*"], latency=False)
    with pytest.raises(NoConvolutionError, match="--exclude"):
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
    can = {key: float(share) for key, share in re.findall(r"--(macs|params) ([\d.]+\d)", told)}
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


def test_two_timings_are_enough_where_the_gain_is_steady(machine: Machine):
    for machine.gain in (0.7, 1.3):
        search = prepared(machine, plain())
        machine.nets = 0
        search.choose(Budget(speedup=1.4))
        assert machine.nets == 2
        search.choose(Budget(speedup=1.3))
        assert machine.nets == 3  # the gain is known by now


def test_the_fastest_net_is_tried_before_giving_up(machine: Machine):
    search = prepared(machine, plain())
    machine.gain = 0.8
    most = search.fastest(Budget(speedup=2)).measured_speedup
    choice = search.choose(Budget(speedup=most * 0.999))
    assert choice.measured_speedup >= most * 0.999


def test_several_limits_are_kept_together(machine: Machine):
    model = plain()
    result = searched(model, Budget(speedup=1.3, macs=0.5, params=0.45))
    macs, params = shares(model, result.model)
    assert macs <= 0.5
    assert params <= 0.45
    assert result.report.measured
    assert result.report.measured.speedup >= 1.3
    with pytest.raises(BudgetError, match="--macs 0.01"):
        searched(model, Budget(speedup=1.3, macs=0.01))


# True losses


def test_with_images_the_net_of_least_measured_loss_is_taken(machine: Machine):
    result = searched(plain(), Budget(speedup=1.5), data=images(), method="auto")
    assert result.report.search
    rounds = result.report.search.rounds
    assert len(rounds) >= 3  # the mix and its rivals
    (taken,) = [one for one in rounds if one["taken"]]
    assert taken["measured_loss"] == min(one["measured_loss"] for one in rounds)
    assert taken["measured_speedup"] >= 1.5
    assert all(one["measured_speedup"] >= 1.5 for one in rounds)


def test_measured_losses_correct_the_choice(monkeypatch: pytest.MonkeyPatch):
    """One method loses in truth more than what is predicted: the mix then uses less of it."""
    names = ["spatial_svd", "channel_svd", "tucker2"]
    search = prepare(Residual().eval(), EXAMPLE, names=names, data=images())
    first = search.choose(Budget(macs=0.5))
    liked = max(names, key=lambda name: saved_by(first.plan, name))

    def loss(plan: Plan) -> float:
        return sum(search.tables.loss_of(p.spec.name, Option(p.method or "", p.rank, p.variant,
                                                             p.macs, p.params))
                   * (1.5 if p.method == liked else 1) for p in plan.factorized)  # fmt: skip

    monkeypatch.setattr(search.fits, "loss", loss)
    found = search.within(Budget(macs=0.5))
    (taken,) = [one["tried"] for one in found.rounds if one["taken"]]
    assert taken.startswith("all methods, corrected")
    assert saved_by(found.choice.plan, liked) < saved_by(first.plan, liked)
    assert found.loss == min(one["measured_loss"] for one in found.rounds)


def saved_by(plan: Plan, name: str) -> int:
    return sum(layer.spec.macs - layer.macs for layer in plan.factorized if layer.method == name)


def test_a_net_that_loses_nothing_is_no_failure():
    model = plain()
    with torch.no_grad():
        model[-1].weight.zero_()
    result = searched(model, Budget(macs=0.5), data=images(), latency=False)
    assert shares(model, result.model)[0] <= 0.5


@pytest.mark.parametrize("sensitivity", ["error", "kl"])
def test_layers_that_do_not_reach_the_output_are_cut_most(sensitivity: Any):
    model = Residual().eval()
    with torch.no_grad():
        model.expand.weight.zero_()
    result = searched(model, Budget(macs=0.6), data=images(), latency=False,
                      search=SearchConfig(sensitivity))  # fmt: skip
    left = {layer.spec.name: layer.macs / layer.spec.macs for layer in result.plan.layers}
    assert left["conv"] < 0.2
    assert left["stem"] > 2 * left["conv"]


def test_kl_predicts_what_the_net_loses_by_one_layer():
    data = replace(images(), holdout=images().train)
    search = prepare(plain(), EXAMPLE, sensitivity="kl", names=["spatial_svd"], include=["5"],
                     data=data)  # fmt: skip
    for macs in (0.5, 0.7, 0.9):
        choice = search.choose(Budget(macs=macs))
        assert 0.5 < choice.loss / search.fits.loss(choice.plan) < 2


def test_kl_needs_images():
    with pytest.raises(DataError, match="--sensitivity kl needs images"):
        searched(plain(), Budget(macs=0.5), search=SearchConfig("kl"))
    with pytest.raises(DataError, match="--sensitivity must be"):
        searched(plain(), Budget(macs=0.5), search=SearchConfig("entropy"))  # type: ignore[arg-type]


# The largest loss of accuracy


class Judged:
    """Fits that lose points by the square of the MACs that are saved."""

    can_judge, model = True, None

    def __init__(self, metric: str = "top1", least: float = 0.0) -> None:
        self.metric, self.least = metric, least

    def quality_of(self, model: object, images: int = 1000) -> dict[str, float]:
        return {self.metric: 90.0, "kl": 0.0}

    def drop(self, plan: Plan) -> float:
        share = sum(p.macs for p in plan.layers) / sum(p.spec.macs for p in plan.layers)
        return self.least + 40 * (1 - share) ** 2

    def quality(self, plan: Plan, images: int = 1000) -> dict[str, float]:
        return {self.metric: 90.0 - self.drop(plan), "kl": 1.0}

    def of(self, plan: Plan) -> Any:
        return SimpleNamespace(layers={})


def judged(machine: Machine, **options: Any) -> tuple[Search, Judged]:
    search = prepared(machine, plain())
    fits = Judged(**options)
    search.fits = fits  # type: ignore[assignment]
    return search, fits


@pytest.mark.parametrize("metric", ["top1", "agreement"])
@pytest.mark.parametrize("allowed", [2.0, 10.0, 100.0])
def test_the_fastest_net_that_keeps_the_accuracy(machine: Machine, metric: str, allowed: float):
    search, fits = judged(machine, metric=metric)
    found = fastest(search, Budget(max_drop=allowed))
    assert fits.drop(found.choice.plan) <= allowed
    speed = found.choice.measured_speedup
    most = search.fastest(Budget(speedup=2)).measured_speedup
    if speed * 1.06 < most:
        faster = search.choose(Budget(speedup=speed * 1.06))
        assert fits.drop(faster.plan) > allowed
    else:
        assert allowed == 100
    assert [one["drop_of"] for one in found.rounds] == [metric] * len(found.rounds)
    (taken,) = [one for one in found.rounds if one["taken"]]
    assert taken["measured_speedup"] == speed
    assert speed == max(o["measured_speedup"] for o in found.rounds if o["drop"] <= allowed)


def test_accuracy_with_a_speedup_asks_for_both(machine: Machine):
    search, _fits = judged(machine)
    alone = fastest(search, Budget(max_drop=5.0)).choice
    both = fastest(search, Budget(max_drop=5.0, speedup=alone.measured_speedup - 0.01)).choice
    assert both.measured_speedup == alone.measured_speedup
    with pytest.raises(BudgetError, match=f"allows {alone.measured_speedup:.2f}x"):
        fastest(search, Budget(max_drop=5.0, speedup=alone.measured_speedup + 0.1))


def test_accuracy_with_shares_keeps_both(machine: Machine):
    search, fits = judged(machine)
    found = fastest(search, Budget(max_drop=20.0, params=0.5)).choice
    saved = sum(layer.spec.params - layer.params for layer in found.plan.layers)
    assert 1 - saved / search.tables.params <= 0.5
    assert fits.drop(found.plan) <= 20
    with pytest.raises(BudgetError, match="--params 0.01: cannot be kept"):
        fastest(search, Budget(max_drop=20.0, params=0.01))


def test_accuracy_that_nothing_keeps_names_the_least_loss(machine: Machine):
    search, _fits = judged(machine, least=5.0)
    with pytest.raises(BudgetError, match="--max-drop 1: .* the least loss of top1 was ") as caught:
        fastest(search, Budget(max_drop=1.0))
    least = re.search(r"was ([\d.]+) points", str(caught.value))
    assert least
    assert 5 <= float(least[1]) < 5.5
    machine.gain = 0.001
    with pytest.raises(BudgetError, match="^not faster: no net is measured 1.02x"):
        fastest(search, Budget(max_drop=1.0))


def test_accuracy_needs_images_and_classes(machine: Machine):
    with pytest.raises(DataError, match="--max-drop needs images"):
        searched(plain(), Budget(max_drop=1.0))
    search, _ = judged(machine, metric="relative_difference")
    with pytest.raises(DataError, match="logits of classes"):
        fastest(search, Budget(max_drop=1.0))


@pytest.mark.parametrize("labelled", [True, False])
def test_accuracy_of_a_real_net_is_kept_on_held_out_images(machine: Machine, labelled: bool):
    model = plain()
    data = images(labelled, model)
    result = searched(model, Budget(max_drop=15.0), data=data)
    pixels = torch.cat([batch[0] for batch in data.holdout])
    search = result.report.search
    assert search
    (taken,) = [one for one in search.rounds if one["taken"]]
    assert taken["drop_of"] == ("top1" if labelled else "agreement")
    assert taken["drop"] <= 15.0
    made = prepare_fit(model, result)
    with torch.no_grad():
        same = (made(pixels).argmax(1) == model(pixels).argmax(1)).float().mean()
    assert float(same) == pytest.approx(1 - taken["drop"] / 100)


def prepare_fit(model: nn.Module, result: Result) -> nn.Module:
    """The net as it was judged: fitted, not recalibrated."""
    from factorize import rewrite

    return rewrite(model, result.plan, data=images())


# The curve


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is computed: one entry each time."""
    done: list[str] = []
    module = import_module("factorize.search.prepare")
    curves = module.curves

    def counted(*args: Any, **options: Any) -> Any:
        done.append("curves")
        return curves(*args, **options)

    monkeypatch.setattr(module, "curves", counted)
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


def test_the_knee_is_where_loss_begins_to_rise(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    sweep = import_module("factorize.search.sweep")

    def found(speed: float, loss: float) -> Any:
        return SimpleNamespace(choice=SimpleNamespace(measured_speedup=speed), loss=loss)

    flat_then_steep = {s: found(s, loss) for s, loss in
                       ((1.5, 0.010), (2.0, 0.011), (3.0, 0.013), (4.0, 1.0))}  # fmt: skip
    assert sweep._knee(flat_then_steep) == 3.0
    assert sweep._knee({s: found(s, 0.1) for s in (1.5, 2.0)}) == 2.0


@pytest.mark.parametrize(("sweep", "pick", "message"), [
    ((1.5, 2.0), 3.0, "--pick must be knee or one of"),
    ((), 2.0, "--pick must be knee or one of"),
    ((0.5, 2.0), "knee", "--sweep must be speedups above 1"),
    ((float("nan"),), "knee", "--sweep must be speedups above 1"),
])  # fmt: skip
def test_wrong_points_are_refused_before_any_work(sweep: Any, pick: Any, message: str):
    with pytest.raises(BudgetError, match=message):
        SearchConfig(sweep=sweep, pick=pick)


def test_a_curve_ends_where_nothing_is_faster(machine: Machine):
    result = swept(plain(), (1.3, 50.0, 60.0))
    assert [p.wanted for p in result.report.curve if p.kind == "search"] == [1.3]
    (note,) = [note for note in result.report.notes if "curve ends" in note]
    assert "before 50x: --speedup 50: the most that was measured" in note
    with pytest.raises(BudgetError, match="--pick 50: the curve ends before 50x"):
        swept(plain(), (1.3, 50.0), 50.0)
    with pytest.raises(BudgetError, match="^--speedup 50: the most"):
        swept(plain(), (50.0,))


def test_a_sweep_keeps_other_shares_and_refuses_other_speeds(machine: Machine):
    model = plain()
    result = searched(model, Budget(params=0.5), search=SearchConfig(sweep=(1.2, 1.4)))
    assert all(p.params <= 0.5 for p in result.report.curve if p.kind == "search")
    for budget in (Budget(speedup=1.5), Budget(max_drop=1.0)):
        with pytest.raises(RankError, match="a sweep goes through speedups itself"):
            searched(model, budget, search=SearchConfig(sweep=(1.2, 1.4)))


# The cache


def test_a_damaged_cache_is_a_note_in_the_report(machine: Machine):
    default_cache_path().write_bytes(b"not a database" * 100)
    result = searched(plain(), Budget(speedup=1.3))
    assert any(str(default_cache_path()) in note for note in result.report.notes)


def test_a_second_search_measures_no_chain_again(machine: Machine):
    first = searched(plain(), Budget(speedup=1.3)).report.search
    machine.timed.clear()
    second = searched(plain(), Budget(speedup=1.5)).report.search
    assert first
    assert second
    assert (first.chains_cached, second.chains_timed) == (0, 0)
    assert not machine.timed
    assert searched(plain(), Budget(speedup=1.5), refresh=True).report.search.chains_timed  # type: ignore[union-attr]
