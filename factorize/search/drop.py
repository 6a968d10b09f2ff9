"""The fastest net that keeps the accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from factorize.errors import BudgetError, DataError
from factorize.outputs import Outputs
from factorize.plan import Budget
from factorize.search.trials import Choice, Found
from factorize.search.within_budget import Search
from factorize.types import Progress

PROBES = 7
"""Speeds that are tried."""

IMAGES = 5000
"""Held-out ones that top-1 is measured on: with 1,000 a point of it is within the noise."""

LEAST = 1.02
"""The smallest speedup worth a try."""


def droppable(before: Mapping[str, float], outputs: Outputs) -> str:
    """The value of a model that `max_drop` is a drop of.

    Raises
    ------
    DataError
        It has none: the model does not classify, and there is no score.
    """
    own = [outputs.score_name] if outputs.score else ["top1", "agreement"]
    name = next((one for one in own if one in before), None)
    if name is None:
        raise DataError(
            "--max-drop: needs outputs that are logits of classes, or a score of your own, got "
            "neither. Give --score, or use --speedup."
        )
    return name


def fastest(search: Search, budget: Budget, progress: Progress | None = None) -> Found:
    """By bisection over speedups: the fastest fitted net that loses at most `budget.max_drop`.

    The loss is that of the user's own score on held-out training images, before any fine-tuning,
    or of top-1; without labels, the share of images on which the net no longer agrees with the
    original.

    Raises
    ------
    DataError
        There is nothing that could drop, see `droppable`.
    BudgetError
        No net that is measured faster keeps the accuracy, or none that keeps it is as fast as
        `budget.speedup`.
    """
    assert budget.max_drop is not None
    before = search.fits.quality_of(search.fits.model, IMAGES)
    name = droppable(before, search.fits.outputs)
    limits = replace(budget, max_drop=None, speedup=LEAST)
    low, high = LEAST, max(search.fastest(limits).measured_speedup, LEAST)
    trials, best = [], None
    speed = (low * high) ** 0.5
    for probe in range(PROBES):
        try:
            choice = search.choose(replace(limits, speedup=speed))
        except BudgetError:
            high = speed
        else:
            drop = before[name] - search.fits.quality(choice.plan, IMAGES)[name]
            drop *= search.fits.outputs.sign
            kept = drop <= budget.max_drop
            trials.append(_trial(choice, name, drop))
            if kept and (best is None or choice.measured_speedup > best.measured_speedup):
                best = choice
            if kept:
                low = max(speed, min(choice.measured_speedup, high))
            else:
                high = speed
        if progress:
            progress("search the fastest", probe + 1, PROBES, {"speedup": speed})
        if high / low < LEAST:
            break
        speed = (low * high) ** 0.5
    if best is None:
        if not trials:
            raise BudgetError(
                f"not faster: no net is measured {LEAST:g}x as fast as the original on "
                f"{search.tables.target}: the model stays as it is. Try another --target, or "
                "--macs."
            )
        least = min(float(one["drop"]) for one in trials)
        raise BudgetError(
            f"--max-drop {budget.max_drop:g}: no net that is faster on {search.tables.target} "
            f"keeps it: the least loss of {name} was {least:.2f}. Allow more, or "
            "--reconstruct."
        )
    if budget.speedup is not None and best.measured_speedup < budget.speedup:
        raise BudgetError(
            f"--max-drop {budget.max_drop:g}: allows {best.measured_speedup:.2f}x on "
            f"{search.tables.target}, and --speedup asks for {budget.speedup:g}x. Give up one of "
            "them."
        )
    trials = [{**one, "taken": one["plan"] is best.plan} for one in trials]
    trials = [{key: value for key, value in one.items() if key != "plan"} for one in trials]
    return Found(best, search.fits.of(best.plan), tuple(trials))


def _trial(choice: Choice, name: str, drop: float) -> dict[str, Any]:
    return {
        "tried": f"{choice.measured_speedup:.2f}x",
        "plan": choice.plan,
        "predicted_loss": choice.loss,
        "predicted_speedup": choice.predicted,
        "measured_speedup": choice.measured_speedup,
        "drop_of": name,
        "drop": drop,
    }
