"""What a target likes, as far as the chains of one net tell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from factorize.measure import LatencyModel
from factorize.search.offers import Layer, hardware_step


def likes(latency: LatencyModel, layers: Iterable[Layer]) -> tuple[dict[str, Any], ...]:
    """For each target the step of channels that it was found to like, and what methods gain there.

    Returns
    -------
    tuple
        Of dicts: ``target``, ``step``, and ``methods``, by name: ``layers`` that it has chains for
        of a third of the MACs or more, in how many one is ``faster`` than dense, and the most that
        one gains, ``speedup``: the lower bound with 95 % confidence.
    """
    every = list(layers)
    found = []
    for place, one in enumerate((latency, *latency.beside)):
        gains = [layer.gains[place] for layer in every if layer.gains]
        names = sorted({name for of_layer in gains for name in of_layer})
        methods = {}
        for name in names:
            known = [of_layer[name] for of_layer in gains if name in of_layer]
            faster = sum(gain > 1 for gain in known)
            methods[name] = {"layers": len(known), "faster": faster, "speedup": max(known)}
        found.append({"target": str(one.target), "step": hardware_step(one), "methods": methods})
    return tuple(found)
