"""The nets that a search would time, for a device on which only somebody else can."""

from __future__ import annotations

from factorize.errors import BudgetError
from factorize.plan import Budget
from factorize.search.trials import Choice
from factorize.search.within_budget import Search

DOUBTS = (1.0, 1.1, 0.9)
"""Of the time that a net has to save, what its layers have to promise: nets are not the sum of
their layers, and one of these is likely just as fast as asked."""


def best_nets(search: Search, speedup: float) -> list[Choice]:
    """The best net by the times of its layers; the best if nets gain less than these, and more.

    Raises
    ------
    BudgetError
        None is predicted to be so fast.
    """
    saved, found = 1 - 1 / speedup, []
    failure: BudgetError | None = None
    for doubt in DOUBTS:
        try:
            choice = search.choose(Budget(speedup=1 / max(1 - doubt * saved, 1e-3)))
        except BudgetError as error:
            failure = failure or error
        else:
            if choice.plan.layers not in [one.plan.layers for one in found]:
                found.append(choice)
    if not found:
        assert failure is not None
        raise failure
    return found
