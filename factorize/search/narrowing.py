"""Choices within limits, their losses known by fits: only what may be chosen is fitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from factorize.plan import Candidate, allocate, prices
from factorize.search.curves import LEARNED, UNKNOWN
from factorize.search.error_curve import Key
from factorize.search.offers import Offer
from factorize.search.tables import Tables

ROUNDS = 6
"""Of fits, at most; most are done after three."""

Candidates = Mapping[str, list[Candidate]]


def settled(
    tables: Tables, offered: Callable[[], Candidates], limits: Mapping[str, float]
) -> dict[str, Candidate]:
    """The chains of least loss; what may be among them is fitted to its layers first, and timed.

    A rough look at all chains implies a price of the limits, and the price tells which chains can
    matter. Their fits move the price, and so on until no doubt is left (successive halving, with
    the knapsack's multiplier as the judge).

    Parameters
    ----------
    offered
        The candidates, with losses as known by now.

    Raises
    ------
    UnreachableBudget
        No choice keeps the limits.
    """
    for _ in range(ROUNDS):
        candidates = offered()
        chosen = allocate(candidates, limits)
        doubtful = _doubtful(tables, candidates, chosen, prices(candidates, limits))
        if doubtful:
            tables.losses.fit(doubtful)
        elif tables.confirm(chosen):
            return chosen
    while not tables.confirm(chosen := allocate(offered(), limits)):
        pass
    return chosen


def _doubtful(
    tables: Tables,
    candidates: Candidates,
    chosen: Mapping[str, Candidate],
    price: Mapping[str, float],
) -> list[tuple[str, Offer]]:
    """Of each kind of chain for a layer the most promising, if it might be the best of all.

    And what is chosen, if no fit tells what it loses.
    """
    losses = tables.losses
    wanted: dict[tuple[str, Offer], None] = {}
    unknown: dict[str, list[tuple[float, str, Offer]]] = {}  # by method, that no fit tells of
    for name, of_layer in candidates.items():
        costs = [sum(p * one.costs[key] for key, p in price.items()) for one in of_layer]
        least = min(one.loss + cost for one, cost in zip(of_layer, costs, strict=True))
        hopes: dict[Key, tuple[float, Offer]] = {}
        for one, cost in zip(of_layer, costs, strict=True):
            if one.choice is not None:
                hope = one.loss / losses.doubt(name, one.choice) + cost
                key = losses.key(name, one.choice)
                if hope < min(least, hopes[key][0] if key in hopes else least):
                    hopes[key] = hope, one.choice
        for hope, offer in hopes.values():
            if losses.doubt(name, offer) == UNKNOWN:
                unknown.setdefault(offer.method, []).append((hope / least, name, offer))
            else:
                wanted[name, offer] = None
        if chosen[name].choice is not None:
            wanted[name, chosen[name].choice] = None
    for of_method in unknown.values():  # a few layers tell how far off the method is in all
        most = sorted(of_method, key=lambda one: one[0])[:LEARNED]
        wanted |= {(name, offer): None for _, name, offer in most}
    return [(name, offer) for name, offer in wanted if losses.doubt(name, offer) > 1]
