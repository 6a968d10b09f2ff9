"""One candidate per layer within some budgets: the multiple-choice knapsack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factorize.errors import BudgetError

Numbers = NDArray[np.float64]

KEPT = 1000
"""Partial choices that are carried on from one layer to the next."""

ROUNDING = 1e-12
"""Relative: the same costs, summed in another order, keep the same budget."""

PENALTY = 1e4
"""Price of a budget that can't be kept, per layer: above those at which losses are traded."""


@dataclass(frozen=True)
class Candidate:
    """One way to treat a layer: what it costs (each >= 0) and what is lost by it (>= 0)."""

    costs: Mapping[str, float]
    loss: float
    choice: Any = None


class UnreachableBudget(BudgetError):  # noqa: N818
    """No choice keeps all budgets; ``reachable`` holds the totals of the nearest one."""

    def __init__(self, budgets: Mapping[str, float], reachable: Mapping[str, float]) -> None:
        self.reachable = dict(reachable)
        totals = "; ".join(
            f"{key} must be at least {_shown(reachable[key])}, got {_shown(budget)}"
            for key, budget in budgets.items()
            if reachable[key] > budget
        )
        super().__init__(
            f"budget: {totals}. Raise it, or leave fewer layers and methods out of the search."
        )


def _shown(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def allocate(
    layers: Mapping[str, Sequence[Candidate]], budgets: Mapping[str, float]
) -> dict[str, Candidate]:
    """The candidates of least total loss whose total costs keep every budget, nearly.

    The linear relaxation gives each budget a price (its Lagrange multiplier); loss plus priced
    costs ranks what was chosen for some of the layers by a bound on what all will lose. Layer by
    layer the choices of lowest bound are carried on, less those that can't keep the budgets any
    more and those that another one beats in loss and costs. So the result is optimal where no more
    than `KEPT` are left at any layer. Of equal losses the lower cost is taken.

    Parameters
    ----------
    layers
        The candidates of each layer, at least one.
    budgets
        The largest total of each cost; costs without a budget do not count.

    Raises
    ------
    UnreachableBudget
        No choice keeps all budgets.
    """
    tables, kept, limits, scale = _tables(layers, budgets)
    # Large layers first: the small ones then fill what is left.
    names = sorted(tables, key=lambda name: -float((np.ptp(tables[name], 0)[1:] / scale).sum()))
    ordered = [tables[name] for name in names]

    within: Numbers = limits + ROUNDING * abs(limits)
    picks, totals = _search(ordered, _prices(ordered, limits, scale), within)
    if len(picks):
        best = int(np.lexsort(((totals[:, 1:] / scale).sum(1), totals[:, 0]))[0])
    else:
        free = [table * (np.arange(table.shape[1]) > 0) for table in ordered]  # no loss counts
        picks, totals = _search(free, _prices(free, limits, scale), np.full_like(limits, np.inf))
        best = int(((totals[:, 1:] - limits) / scale).max(1).argmin())
        if (totals[best, 1:] > within).any():
            nearest = totals[best, 1:].tolist()
            raise UnreachableBudget(budgets, dict(zip(budgets, nearest, strict=True)))
    chosen = dict(zip(names, picks[best].tolist(), strict=True))
    return {name: candidates[int(kept[name][chosen[name]])] for name, candidates in layers.items()}


def prices(
    layers: Mapping[str, Sequence[Candidate]], budgets: Mapping[str, float]
) -> dict[str, float]:
    """What a unit of each cost is worth in loss where the budgets bind, as `allocate` has it."""
    tables, _, limits, scale = _tables(layers, budgets)
    found = _prices(list(tables.values()), limits, scale)
    return dict(zip(budgets, found.tolist(), strict=True))


def _tables(
    layers: Mapping[str, Sequence[Candidate]], budgets: Mapping[str, float]
) -> tuple[dict[str, Numbers], dict[str, NDArray[np.int_]], Numbers, Numbers]:
    """By layer, losses and costs of what is not beaten in all, and which those are.

    Also the budgets, and units to count their costs in.
    """
    limits: Numbers = np.array(list(budgets.values()), float)
    tables, kept = {}, {}
    for name, candidates in layers.items():
        table = np.array([[o.loss, *(o.costs[key] for key in budgets)] for o in candidates], float)
        kept[name] = _undominated(table)
        tables[name] = table[kept[name]]
    most = sum((table.max(0)[1:] for table in tables.values()), np.zeros_like(limits))
    scale = np.where(most > 0, np.maximum(limits, 1e-6 * most), 1)  # nothing overflows its unit
    return tables, kept, limits, scale


def _prices(tables: Sequence[Numbers], limits: Numbers, scale: Numbers) -> Numbers:
    """What a unit of each budget is worth: the dual of the linear relaxation.

    In it, layers mix their candidates, and all budgets may be exceeded by one common share, at a
    price far above any loss. Where no loss counts, the share is the least there is; below 0 they
    are kept with something to spare.

    Parameters
    ----------
    tables
        One (candidates, 1 + budgets) per layer: the loss, then the costs.
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_matrix

    rows = np.concatenate(tables)
    layer = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    one_per_layer = csr_matrix(
        (np.ones(len(rows)), (layer, np.arange(len(rows)))), (len(tables), len(rows) + 1)
    )
    unit = rows[:, 0].max()
    losses = rows[:, 0] / (unit or 1)
    relaxed = linprog(
        np.append(losses, PENALTY * len(tables)),
        A_ub=np.column_stack([(rows[:, 1:] / scale).T, -np.ones(len(limits))]),
        b_ub=limits / scale,
        A_eq=one_per_layer,
        b_eq=np.ones(len(tables)),
        bounds=[(0, None)] * len(rows) + [(0 if unit else -1, None)],
        method="highs",
    )
    return -relaxed.ineqlin.marginals * (unit or 1) / scale


def _search(
    tables: Sequence[Numbers], prices: Numbers, limits: Numbers
) -> tuple[NDArray[np.int_], Numbers]:
    """Choices for all layers within the limits, found layer by layer.

    Returns
    -------
    The candidates' indices (choices, layers) and their sums (choices, 1 + budgets).
    """
    weights, most = np.append(1, prices), np.append(np.inf, limits)
    rest = sum((table.min(0) for table in tables), np.zeros(len(most)))  # of the layers to come
    picks, totals = np.zeros((1, 0), int), np.zeros((1, len(most)))
    for table in tables:
        rest = rest - table.min(0)
        sums = totals[:, None] + table  # (kept, candidates, 1 + budgets)
        parents, choices = np.nonzero((sums + rest <= most).all(2))
        sums = sums[parents, choices]
        if len(sums) > KEPT:
            best = np.argpartition(sums @ weights, KEPT)[:KEPT]
            sums, parents, choices = sums[best], parents[best], choices[best]
        best = _undominated(sums)
        totals = sums[best]
        picks = np.column_stack([picks[parents[best]], choices[best]])
    return picks, totals


def _undominated(rows: Numbers) -> NDArray[np.int_]:
    """Indices of the rows that no other row is at or below in all columns; of equal ones one."""
    order = np.lexsort(rows.T[::-1])  # a row can only be dominated by one before it
    ordered = rows[order]
    if rows.shape[1] == 2:  # of what loses less, all cost more
        least = np.minimum.accumulate(ordered[:, 1])
        return order[ordered[:, 1] < np.append(np.inf, least[:-1])[: len(rows)]]
    below = np.triu(np.ones((len(rows), len(rows)), bool), 1)
    for column in ordered.T:
        below &= column[:, None] <= column
    return order[~below.any(0)]
