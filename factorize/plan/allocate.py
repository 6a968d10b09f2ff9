"""One candidate per layer within a budget: the multiple-choice knapsack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from factorize.errors import BudgetError


@dataclass(frozen=True)
class Candidate:
    """One way to treat a layer: what it costs and what is lost by it."""

    cost: float
    loss: float
    choice: Any = None


def allocate(layers: Mapping[str, Sequence[Candidate]], budget: float) -> dict[str, Candidate]:
    """The candidates of least total loss whose total cost is at most a budget, nearly.

    Each layer takes the candidate of least ``loss + price * cost``; the price at which the budget
    is just kept is found by bisection (Lagrangian relaxation: the optimum on the lower convex
    hull). What is left of the budget then buys the best gains per cost that still fit.

    Raises
    ------
    BudgetError
        Even the cheapest candidates cost more.
    """
    least = sum(min(option.cost for option in options) for options in layers.values())
    if least > budget:
        raise BudgetError(
            f"budget: must be at least {least:,.0f}, the cost of the cheapest candidates, got "
            f"{budget:,.0f}. Raise it, or leave fewer layers alone."
        )

    def cheapest(price: float) -> dict[str, Candidate]:
        return {
            name: min(options, key=lambda o: (o.loss + price * o.cost, o.cost))
            for name, options in layers.items()
        }

    def cost(chosen: Mapping[str, Candidate]) -> float:
        return sum(option.cost for option in chosen.values())

    low, high = 0.0, 1.0
    while cost(cheapest(high)) > budget:
        high *= 4
        if high > 1e300:  # beyond all losses: cost alone decides
            chosen = {n: min(o, key=lambda c: (c.cost, c.loss)) for n, o in layers.items()}
            return _filled(layers, chosen, budget - cost(chosen))
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(cheapest(middle)) <= budget else (middle, high)
    chosen = cheapest(high)
    return _filled(layers, chosen, budget - cost(chosen))


def _filled(
    layers: Mapping[str, Sequence[Candidate]], chosen: dict[str, Candidate], left: float
) -> dict[str, Candidate]:
    """Exchange candidates, the best gain per cost first, until nothing that helps fits."""
    chosen = dict(chosen)
    while True:
        options = [
            ((chosen[name].loss - o.loss) / max(o.cost - chosen[name].cost, 1e-12), name, o)
            for name, candidates in layers.items()
            for o in candidates
            if o.loss < chosen[name].loss and o.cost - chosen[name].cost <= left
        ]
        if not options:
            return chosen
        _, name, better = max(options, key=lambda option: option[0])
        left -= better.cost - chosen[name].cost
        chosen[name] = better
