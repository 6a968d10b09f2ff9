"""A whole search: within one budget, or along the accuracy-speedup curve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from torch import nn

from factorize import methods
from factorize.errors import BudgetError, DataError
from factorize.fit import FitConfig, Fitted
from factorize.measure import Chain, LatencyModel, NumberCache, default_cache_path
from factorize.plan import Budget
from factorize.report import CurvePoint, SearchReport
from factorize.search.assembled import Assembled
from factorize.search.drop import fastest
from factorize.search.known import KnownErrors
from factorize.search.likes import likes
from factorize.search.prepare import prepare
from factorize.search.sweep import Sweep, speedups_of, sweep
from factorize.system.stopwatch import Stopwatch
from factorize.types import Data, Plan, Progress, Speedup

SENSITIVITIES = ("error", "kl")


@dataclass(frozen=True)
class SearchConfig:
    """How to search.

    Attributes
    ----------
    sensitivity
        What the loss of a chain is predicted by: ``error``, relative output errors weighed by how
        much of them comes out at the end of the net; ``kl``, the KL divergence of the net's output
        with that one layer replaced (needs images).
    sweep
        Speedups to search for, one after the other, or ``auto``: the accuracy-speedup curve.
    shares
        The same for shares of the MACs.
    pick
        Which point of the curve is the result: one of `sweep` or `shares`, or ``knee``.

    Raises
    ------
    DataError, BudgetError
        There is no such sensitivity; a speedup is not above 1, a share not in (0, 1), there are
        both, or `pick` is not one of them.
    """

    sensitivity: Literal["error", "kl"] = "error"
    sweep: tuple[float, ...] | Literal["auto"] = ()
    shares: tuple[float, ...] = ()
    pick: float | Literal["knee"] = "knee"

    def __post_init__(self) -> None:
        if self.sensitivity not in SENSITIVITIES:
            names = ", ".join(SENSITIVITIES)
            raise DataError(f"sensitivity must be one of {names}, got {self.sensitivity!r}.")
        if self.sweep != "auto" and not all(1 < speedup < 1000 for speedup in self.sweep):
            raise BudgetError(
                f"sweep must be speedups above 1 such as 1.5,2,3 or auto, got {self.sweep}."
            )
        if not all(0 < share < 1 for share in self.shares):
            raise BudgetError(
                f"shares of MACs must be in (0, 1), such as 0.5,0.3, got {self.shares}."
            )
        if self.sweep and self.shares:
            raise BudgetError(
                "sweep goes through speedups, and macs through shares. Leave one of them out."
            )
        if self.pick != "knee" and self.pick not in self.points:
            points = self.points or "the points of a sweep, of which there is none"
            raise BudgetError(f"pick must be knee or one of {points}, got {self.pick}. Correct it.")

    @property
    def over(self) -> Literal["speedup", "macs"]:
        """What the points are of."""
        return "macs" if self.shares else "speedup"

    @property
    def points(self) -> list[float]:
        """What is searched for, the least compressed first, each once."""
        if self.shares:
            return sorted({*self.shares}, reverse=True)
        return speedups_of(self.sweep)


@dataclass(frozen=True)
class Outcome:
    """What a search came to.

    Attributes
    ----------
    predicted
        Speedup of the net by the times of its layers; None where nothing was timed.
    offered
        The fastest chain of each layer for which none is faster than the layer.
    """

    plan: Plan
    fitted: Fitted
    report: SearchReport
    predicted: float | None
    curve: tuple[CurvePoint, ...]
    offered: dict[str, Chain]
    notes: tuple[str, ...]


def run_search(
    model: nn.Module,
    example_input: Any,
    budget: Budget | None,
    config: SearchConfig,
    latency: LatencyModel,
    *,
    method: str = "auto",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    data: Data | None,
    fit: FitConfig,
    rate: Callable[[Fitted | None], dict[str, float]],
    device: str,
    seed: int,
    progress: Progress | None,
    stopwatch: Stopwatch | None = None,
) -> Outcome:
    """Find and fit the plan.

    Parameters
    ----------
    budget
        None: the sweep alone.
    method
        ``auto``, or names of the methods to mix, with commas between them.
    rate
        What the model with a fit of the curve is worth, for the report; None: the original.
    stopwatch
        Gets the seconds of the search's steps.

    Raises
    ------
    BudgetError
        The budget cannot be kept; the message says what can.
    """
    timed = bool(config.sweep) or (budget is not None and budget.timed)
    stopwatch = stopwatch or Stopwatch()
    cache = NumberCache(default_cache_path("errors"), of="errors")
    # Before all else, as a net that the target cannot read is told so by it.
    timer = Assembled(model, example_input, latency.target) if config.shares else None
    with KnownErrors(cache, refresh=latency.refresh) as known:
        search = prepare(
            model, example_input, target=latency.target, latency=latency if timed else None,
            never_slower=timed,
            names=[] if method == "auto" else [name.strip() for name in method.split(",")],
            include=include, exclude=exclude, data=data, config=fit,
            sensitivity=config.sensitivity, known=known, device=device, seed=seed,
            progress=progress, stopwatch=stopwatch,
        )  # fmt: skip
        curve = Sweep((), None)
        if config.points:
            timer = timer or search.assembled
            assert timer is not None
            curve = sweep(search, config.over, config.points, config.pick, budget, timer, rate,
                          progress)  # fmt: skip
            assert curve.found is not None
            found = curve.found
        elif budget is not None and budget.max_drop is not None:
            found = fastest(search, budget, progress)
        else:
            assert budget is not None
            found = search.within(budget)
    choice, notes = found.choice, [*cache.notes, *curve.notes]
    if data is not None and not search.fits.can_judge:
        notes.append(
            "outputs cannot be compared image by image: chains were chosen by the errors of their "
            "layers alone; a loss of your own would tell more"
        )
    if kept := next((one for one in found.trials if one["taken"] and "drop" in one), None):
        notes.append(
            f"{kept['drop']:.2f} points of {kept['drop_of']} lost on held-out training images, "
            "before any fine-tuning"
        )
    plan = replace(choice.plan, settings={"method": method, "include": list(include),
                                          "exclude": list(exclude), "seed": seed})  # fmt: skip
    speed = choice.measured
    asked = {k: v for k, v in asdict(budget).items() if v is not None} if budget else {}
    asked |= curve.picked
    report = SearchReport(
        budget=asked,
        target=latency.target.context(),
        predicted_ms=_predicted_ms(speed, choice.predicted),
        measured=speed,
        layers_considered=len(search.tables.layers),
        chains_timed=latency.timed,
        chains_cached=latency.cached,
        trials=found.trials,
        reached=True,
        errors_made=known.made,
        errors_cached=known.found,
        likes=likes(latency, search.tables.layers.values()) if timed else (),
    )
    offered = {
        name: methods.get(offer.method).stages(layer.spec, offer.rank, offer.variant)
        for name, layer in search.tables.layers.items()
        if (offer := layer.slower and layer.slower[0])
    }
    return Outcome(
        plan, found.fitted, report, choice.predicted, curve.points, offered, tuple(notes)
    )


def completed(
    outcome: Outcome, measured: Speedup | None, also: Sequence[Speedup] = ()
) -> SearchReport:
    """The report of a search, once its result was measured as it is delivered.

    Parameters
    ----------
    also
        On the other targets, on which it may not be slower.
    """
    report = outcome.report
    if measured is None:
        return report
    asked = report.budget.get("speedup")
    return replace(
        report,
        measured=measured,
        predicted_ms=_predicted_ms(measured, outcome.predicted),
        # Two measurements of one model differ: it fails only where that cannot be the reason.
        reached=(asked is None or measured.speedup_p90 >= asked)
        and all(one.speedup_p90 >= 1 for one in also),
    )


def _predicted_ms(measured: Speedup | None, predicted: float | None) -> dict[str, float]:
    if measured is None or predicted is None:
        return {}
    dense = measured.original.median_ms
    return {"original": dense, "compressed": dense / predicted}
