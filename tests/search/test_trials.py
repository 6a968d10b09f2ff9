"""Nets are told apart by what they lose on held-out images, as far as that tells them apart."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from searching import EXAMPLE, PIXELS, Machine, Residual, images, installed, plain, prepared
from torch import Tensor, nn

from factorize import find
from factorize.errors import DataError
from factorize.fit import FitConfig
from factorize.measure import accuracy
from factorize.outputs import UNDECLARED, Outputs
from factorize.plan import Budget
from factorize.search import within_budget
from factorize.search.fits import HOLDOUT, Fits
from factorize.search.held_out import Losses, losses_of, standard_error
from factorize.search.prepare import prepare
from factorize.search.trials import MORE, Choice, Trials
from factorize.tensor.reference import Reference
from factorize.types import Data, LayerPlan, Plan, Speedup

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch|onnxscript")

# Losses of images


class Several(nn.Module):
    """Two outputs that are values, the second of which has no row for an image."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.net(x)
        return {"each": y[..., None], "all": y.mean(0)}


def mean_square(student: Any, teacher: Any, batch: Any) -> Tensor:
    del batch
    return (student - teacher).square().mean()


def pair(several: bool = False) -> tuple[nn.Module, nn.Module]:
    one = plain()
    other = copy.deepcopy(one)
    with torch.no_grad():
        other[3].weight.mul_(0.8)  # type: ignore[index, operator, union-attr]
    return (Several(other), Several(one)) if several else (other, one)


def judged_by() -> tuple[nn.Module, Reference]:
    model, original = pair()
    return model, Reference(original, "cpu", memory=1e9)


BATCHES = [(part,) for part in PIXELS.split(25)]  # 25, 25, 10


@pytest.mark.parametrize(
    ("outputs", "several", "count", "wanted"),
    [
        (UNDECLARED, False, 60, lambda q: q["kl"]),
        (Outputs("multilabel"), False, 60, lambda q: q["kl"]),
        (Outputs("embedding"), False, 60, lambda q: 1 - q["cosine"]),
        (Outputs("values"), False, 60, lambda q: q["relative_difference"] ** 2),
        (UNDECLARED, True, None, lambda q: q["relative_difference"] ** 2),
        (Outputs(loss=mean_square), False, 3, lambda q: q["loss"]),
    ],
)
def test_the_mean_over_images_is_what_accuracy_measures(
    outputs: Outputs, several: bool, count: int | None, wanted: Any
):
    model, reference = pair(several)
    original = Reference(reference, "cpu", memory=1e9)
    losses = losses_of(model, original, BATCHES, outputs, "cpu")
    found = accuracy(model, BATCHES, reference=reference, labelled=False, outputs=outputs)
    rel = 0.05 if several else 1e-6  # outputs without a row for each image: batches count alike
    assert losses.mean() == pytest.approx(wanted(found), rel=rel)
    assert count is None or losses.shape == (count,)
    assert (losses >= 0).all()
    same = losses_of(reference, original, BATCHES, outputs, "cpu")
    assert same == pytest.approx(0, abs=1e-12)


def test_losses_are_of_images_in_their_order():
    model, reference = judged_by()
    every = losses_of(model, reference, BATCHES, UNDECLARED, "cpu")
    alone = losses_of(model, reference, [(PIXELS[30:31],)], UNDECLARED, "cpu")
    assert every[30] == pytest.approx(alone[0], rel=1e-4)
    assert every.std() > 0


def test_outputs_that_are_not_numbers_lose_all_and_those_of_other_shapes_nothing_tells():
    model, reference = judged_by()
    with torch.no_grad():
        model[3].weight.fill_(float("nan"))  # type: ignore[index, operator, union-attr]
    assert (losses_of(model, reference, BATCHES, UNDECLARED, "cpu") == np.inf).all()
    with pytest.raises(DataError, match="differ in shape .* a loss of your own"):
        losses_of(nn.Sequential(model, nn.Linear(5, 4)), reference, BATCHES, UNDECLARED, "cpu")
    with pytest.raises(DataError, match="at least one sample"):
        losses_of(model, reference, [], UNDECLARED, "cpu")


def test_the_standard_error_is_of_the_difference_image_by_image():
    rng = np.random.default_rng(0)
    common, own = rng.exponential(1.0, 400), rng.normal(0, 0.1, 400)
    assert standard_error(common + own, common) == pytest.approx(0.1 / 20, rel=0.1)
    assert standard_error(common, common) == 0
    assert standard_error(common[:1], own[:1]) == 0


@pytest.mark.parametrize(("there", "passes"), [(40, 4), (60, 6)])
def test_images_are_not_looked_at_again_where_there_are_no_more(there: int, passes: int):
    seen: list[int] = []

    class Holdout:
        def __iter__(self) -> Any:
            for number, part in enumerate(PIXELS[:there].split(10)):
                seen.append(number)
                yield (part,)

    model = plain()
    specs = [site.spec for site in find(model, EXAMPLE)]
    data = Data([(PIXELS,)], Holdout(), None, False, None, "made up")
    config = FitConfig(how="weights")
    fits = Fits(model, data=data, config=config, device="cpu", seed=0, progress=None)
    plan = Plan((LayerPlan(specs[1], "cp", (4,)),), {})
    few = fits.losses(plan, 20)
    assert (len(few), len(seen)) == (20, 2)
    seen.clear()
    every = fits.losses(plan, HOLDOUT)
    assert fits.losses(plan, MORE) is every
    assert (len(every), len(seen)) == (there, passes)
    assert every[:20] == pytest.approx(few)
    assert fits.loss(plan) == every.mean()


# Which one is taken


class Known:
    """Stands for fits: losses by the plan's only setting, and how many images were asked for."""

    def __init__(self, means: dict[str, float], noise: float, there: int = MORE) -> None:
        rng = np.random.default_rng(0)
        common = rng.exponential(1.0, there)
        self.all = {}
        for name, mean in means.items():
            apart = rng.normal(0, noise, there)
            # The first thousand, and all, differ by exactly so much.
            apart[:HOLDOUT] -= apart[:HOLDOUT].mean()
            apart[HOLDOUT:] -= apart[HOLDOUT:].mean() if there > HOLDOUT else 0
            self.all[name] = common + mean + apart
        self.asked: list[tuple[str, int]] = []

    def losses(self, plan: Plan, images: int) -> Losses:
        self.asked.append((plan.settings["name"], images))
        return self.all[plan.settings["name"]][:images]


def trials(known: Known, speeds: dict[str, float]) -> Trials:
    choices = {name: Choice(Plan((), {"name": name}), 1.0, speed) for name, speed in speeds.items()}
    found = Trials(known, choices)  # type: ignore[arg-type]
    for name in choices:
        found.judge(name)
    return found


# Noise of 0.1 in each: a standard error of 0.0045 on 1,000 images, of 0.0032 on 2,000.
@pytest.mark.parametrize(
    ("means", "taken", "closer"),
    [
        ({"a": 0.0, "b": 0.02, "c": 0.03}, "a", ""),  # told apart
        ({"a": 0.0, "b": 0.007, "c": 0.03}, "a", "ab"),  # by more images
        ({"a": 0.0, "b": 0.001, "c": 0.03}, "b", "ab"),  # not even by those: the faster one
        ({"a": 0.001, "b": 0.0, "c": 0.001}, "c", "abc"),
    ],
)
def test_more_images_decide_and_of_nets_that_they_do_not_tell_apart_the_fastest_is_taken(
    means: dict[str, float], taken: str, closer: str
):
    known = Known(means, 0.1)
    found = trials(known, {"a": 1.5, "b": 1.6, "c": 1.7})
    assert found.best(means) == taken
    assert sorted(known.asked) == sorted(
        [(name, HOLDOUT) for name in means] + [(name, MORE) for name in closer]
    )
    rows = {row["tried"]: row for row in found.rows(taken)}
    for name, row in rows.items():
        images = MORE if name in closer else HOLDOUT
        assert row["measured_loss"] == pytest.approx(known.all[name][:images].mean())
        error = 0.1 * 2**0.5 / images**0.5 if name != taken else 0
        assert row["loss_error"] == pytest.approx(error, rel=0.1)
        assert row["taken"] is (name == taken)


def test_losses_that_differ_for_certain_are_told_apart_however_near():
    found = trials(Known({"a": 0.0, "b": 1e-6}, 0.0), {"a": 1.0, "b": 9.0})
    assert found.best("ab") == "a"


def test_a_net_of_no_numbers_is_taken_only_where_there_is_no_other():
    known = Known({"a": 0.0, "b": 0.5}, 0.0)
    known.all["b"][:] = np.inf
    with np.errstate(invalid="ignore"):
        assert trials(known, {"a": 1.0, "b": 9.0}).best("ab") == "a"
        assert trials(known, {"b": 9.0}).best("b") == "b"


def test_the_speed_of_a_choice_is_measured_or_predicted_or_that_of_fewer_convolutions():
    spec = find(plain(), EXAMPLE)[1].spec
    two, three = (
        Choice(Plan((LayerPlan(spec, name, (8,), variant),), {}), 1.0)
        for name, variant in (("spatial_svd", "vertical_first"), ("cp", ""))
    )
    assert two.speed > three.speed
    assert replace(two, predicted=1.4).speed == 1.4
    measured = Speedup("", "", "", 1, 1, 1, None, None, 1.3, 1.2, 1.4)  # type: ignore[arg-type]
    assert replace(two, predicted=1.4, measured=measured).speed == 1.3


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return installed(monkeypatch, tmp_path_factory.mktemp("machine"))


@pytest.mark.parametrize("budget", [Budget(speedup=1.3), Budget(macs=0.5)], ids=str)
@pytest.mark.parametrize("noise", [0.0, 10.0])
def test_a_search_takes_the_fastest_of_those_that_are_not_told_apart(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, budget: Budget, noise: float
):
    """What is lost without noise is less with each trial; with it they are all alike."""
    judged: list[tuple[Any, ...]] = []
    rng = np.random.default_rng(0)

    def losses(self: Fits, plan: Plan, images: int) -> Losses:
        del self
        if plan.layers not in judged:
            judged.append(plan.layers)
        values = rng.normal(0, noise, images)
        return 1.0 - 0.1 * judged.index(plan.layers) + values - values.mean()

    monkeypatch.setattr(Fits, "losses", losses)
    monkeypatch.setattr(within_budget, "RIVALRY", 100.0)
    options: dict[str, Any] = {"data": images(), "config": FitConfig(how="weights"),
                               "names": ["spatial_svd", "cp"]}  # fmt: skip
    model = Residual().eval()
    search = prepared(machine, model, **options) if budget.speedup else prepare(
        model, EXAMPLE, **options
    )  # fmt: skip
    found = search.within(budget)
    assert len(found.trials) == len(judged) >= 2
    (taken,) = [number for number, row in enumerate(found.trials) if row["taken"]]
    if not noise:
        assert taken == len(found.trials) - 1
    elif budget.speedup:
        speeds = [row["measured_speedup"] for row in found.trials]
        assert speeds[taken] == max(speeds)
    else:
        assert found.choice.plan.factorized
        assert {layer.method for layer in found.choice.plan.factorized} == {"spatial_svd"}


@pytest.mark.parametrize(("rivalry", "nets"), [(1.0, 1), (100.0, 2)])
def test_a_method_that_promises_far_more_loss_than_the_mix_is_not_fitted_alone(
    monkeypatch: pytest.MonkeyPatch, rivalry: float, nets: int
):
    monkeypatch.setattr(within_budget, "RIVALRY", rivalry)
    search = prepare(
        Residual().eval(), EXAMPLE, data=images(), config=FitConfig(how="weights"),
        names=["spatial_svd", "cp"],
    )  # fmt: skip
    assert len(search.within(Budget(macs=0.5)).trials) == nets
