"""The curve of accuracy by speedup, or by MACs: one search per point, all on the same tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log
from typing import Literal

from factorize import methods
from factorize.errors import BudgetError
from factorize.fit import Fitted
from factorize.plan import Budget
from factorize.report import CurvePoint
from factorize.search.assembled import Assembled
from factorize.search.recorded_nets import RecordedNets
from factorize.search.tables import Tables
from factorize.search.trials import Choice, Found
from factorize.search.within_budget import Search
from factorize.types import LayerPlan, Plan, Progress

AUTO = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
UNIFORM = "spatial_svd"
"""The method of the baseline: one share of the maximal rank in all layers, as `--rank 0.25`."""


@dataclass(frozen=True)
class Sweep:
    """The points, and the one that was picked.

    Attributes
    ----------
    picked
        The budget of that point, where it is another than time.
    """

    points: tuple[CurvePoint, ...]
    found: Found | None
    notes: tuple[str, ...] = ()
    picked: Mapping[str, float] = field(default_factory=dict)


def sweep(
    search: Search,
    over: Literal["speedup", "macs"],
    wanted: Sequence[float],
    pick: float | Literal["knee"],
    budget: Budget | None,
    timer: Assembled | RecordedNets,
    rate: Callable[[Fitted | None], dict[str, float]],
    progress: Progress | None = None,
) -> Sweep:
    """Search for each speedup or share; beside each point the uniform ranks of as many MACs.

    Parameters
    ----------
    over, wanted
        What the points are of, and the points, the least compressed first.
    budget
        Other limits that each point keeps.
    pick
        One of the points, or ``knee``: where the curve, on logarithms of speedup (of what is saved
        in MACs) and loss on held-out images, is farthest from the line between its ends.
    timer
        Times the nets.
    rate
        What the model with a fit is worth, for the report; None: the original.

    Raises
    ------
    BudgetError
        No point can be reached.
    """
    found: dict[float, Found] = {}
    points = [CurvePoint("original", "dense", None, 1.0, 1.0, 1.0, None, 1.0, 1.0,
                         rate(None), False)]  # fmt: skip
    notes = []
    for done, point in enumerate(wanted):
        if progress:
            progress("sweep", done, len(wanted), {over: point})
        limit = {over: point}
        label = f"{point:g}x" if over == "speedup" else f"{point:g} of MACs"
        try:
            one = search.within(replace(budget, **limit) if budget else Budget(**limit))
        except BudgetError as error:
            notes.append(f"the curve ends before {label}: {error}")
            break
        choice = one.choice
        if choice.measured is None:
            choice = replace(choice, measured=timer.speedup(choice.plan.factorized))
        found[point] = replace(one, choice=choice)
        points.append(_point(search, choice, label, "search", point, rate))
        left = search.tables.macs - sum(p.spec.macs - p.macs for p in choice.plan.layers)
        baseline = Choice(uniform(search.tables, UNIFORM, left), 0.0)
        # Of ranks off the steps nothing is known but what was timed.
        if baseline.plan.factorized and not isinstance(timer, RecordedNets):
            measured = timer.speedup(baseline.plan.factorized)
            baseline = replace(baseline, measured=measured)
            label = f"{UNIFORM}, uniform"
            points.append(_point(search, baseline, label, "uniform", None, rate))
    if not found:
        raise BudgetError(notes[0].partition(": ")[2])
    taken = _knee(found, over) if pick == "knee" else float(pick)
    if taken not in found:
        raise BudgetError(f"--pick {taken:g}: {notes[0]}")
    points = [replace(point, picked=point.wanted == taken) for point in points]
    picked = {over: taken} if over != "speedup" else {}
    return Sweep(tuple(points), found[taken], tuple(notes), picked)


def speedups_of(sweep: Sequence[float] | Literal["auto"]) -> list[float]:
    """What is searched for, ascending, each once."""
    return sorted({*(AUTO if sweep == "auto" else sweep)})


def _knee(found: dict[float, Found], over: str) -> float:
    """The point farthest above the chord of the losses of the choices.

    Points at which nothing was replaced, as int8 alone does, lose nothing: they are no part of it.
    """
    found = {point: one for point, one in found.items() if one.choice.plan.factorized} or found
    wanted = list(found)
    if len(wanted) < 3:
        return wanted[-1]
    if over == "speedup":
        x = [log(one.choice.measured_speedup) for one in found.values()]
    else:
        x = [-log(share) for share in wanted]
    y = [-log(max(one.loss, 1e-12)) for one in found.values()]
    width, height = x[-1] - x[0] or 1.0, y[0] - y[-1] or 1.0
    above = [(b - y[-1]) / height + (a - x[0]) / width for a, b in zip(x, y, strict=True)]
    return wanted[max(range(len(wanted)), key=lambda index: above[index])]


def _point(
    search: Search,
    choice: Choice,
    label: str,
    kind: str,
    wanted: float | None,
    rate: Callable[[Fitted | None], dict[str, float]],
) -> CurvePoint:
    assert choice.measured is not None
    tables, model = search.tables, search.fits.applied(choice.plan)
    saved = sum(layer.spec.macs - layer.macs for layer in choice.plan.factorized)
    params = sum(parameter.numel() for parameter in model.parameters())
    return CurvePoint(
        label=label,
        kind=kind,
        wanted=wanted,
        speedup=choice.measured.speedup,
        speedup_p10=choice.measured.speedup_p10,
        speedup_p90=choice.measured.speedup_p90,
        predicted_speedup=choice.predicted,
        macs=1 - saved / tables.macs,
        params=params / tables.params,
        quality=rate(search.fits.of(choice.plan)),
        picked=False,
    )


def uniform(tables: Tables, name: str, macs: float) -> Plan:
    """One share of the method's maximal rank in all layers, the net within some MACs.

    Every layer that the search may replace is, where that saves MACs.
    """
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        plan = _at_share(tables, name, middle)
        saved = sum(layer.spec.macs - layer.macs for layer in plan.layers)
        low, high = (middle, high) if tables.macs - saved <= macs else (low, middle)
    return _at_share(tables, name, low)


def _at_share(tables: Tables, name: str, share: float) -> Plan:
    method = methods.get(name)
    may = {one for name, layer in tables.layers.items() for one in (name, *layer.tied)}
    layers = []
    for site in tables.sites:
        spec = site.spec
        layer = LayerPlan(spec, macs=spec.macs, params=spec.params, skip_reason="dense")
        if spec.name in may and not method.supports(spec):
            rank = tuple(max(round(share * top), 1) for top in method.max_rank(spec))
            stages = method.stages(spec, rank, method.variants[0])
            macs = sum(stage.macs for stage in stages)
            if macs < spec.macs:
                params = sum(stage.params for stage in stages)
                layer = LayerPlan(spec, name, rank, method.variants[0], macs, params)
        layers.append(layer)
    return Plan(tuple(layers), {})
