"""The plans of the zoo: every layer at a share of its maximal rank, as cheaply as can be.

Methods are all but those that alternate, which take long. Each layer takes the next in
turn of those that are cheap for it, so that all are met; where none is cheap, the cheapest.
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import nn

import factorize
from factorize import methods
from factorize.types import ConvSite, LayerPlan, Plan

ALTERNATING = {"cp", "cp4", "block_term", "tucker2"}
CHEAP = 5e7  # weights times rank: an SVD of some 20 ms
WORK = 5e10  # of a model's layers together: SVDs of about half a minute


def plan_for(model: nn.Module, x: Any, sites: tuple[ConvSite, ...], share: float) -> Plan:
    """Every layer at a share of its maximal rank, by a method of closed form that is cheap for it.

    Below full rank, methods that save MACs come first. Layers beyond `WORK` stay dense, the most
    costly ones first.
    """
    layers, works = [], {}
    for index, site in enumerate(sites):
        layer = LayerPlan(site.spec, skip_reason=site.blocked)
        if not site.blocked:
            layer, works[index] = _choice(site, index, share)
        layers.append(layer)
    spent = 0.0
    for index in sorted(works, key=lambda one: works[one]):
        spent += works[index]
        if spent > WORK:
            reason = f"{layers[index].method} would take too long here"
            layers[index] = LayerPlan(layers[index].spec, skip_reason=reason)
    # Without a variant, the planner takes the one with the lower error.
    return factorize.make_plan(model, x, edited=Plan(tuple(layers), {"zoo": share}))


def _choice(site: ConvSite, index: int, share: float) -> tuple[LayerPlan, float]:
    """A layer's method and rank, or the reasons why there is none; and its work."""
    spec, options, reasons = site.spec, [], []
    for name in sorted(set(methods.names()) - ALTERNATING):
        method = methods.get(name)
        if reason := method.supports(spec):
            reasons.append(reason)
            continue
        limit = method.max_rank(spec)
        rank = tuple(max(round(share * top), 1) for top in limit)
        macs = min(sum(s.macs for s in method.stages(spec, rank, v)) for v in method.variants)
        work = float(prod(spec.weight_shape) * max(limit))
        saves = share == 1 or macs < spec.macs
        options.append((not saves or work > WORK, work, name, rank))
    if not options:
        return LayerPlan(spec, skip_reason="; ".join(dict.fromkeys(reasons))), 0.0
    options = sorted(one for one in options if one[0] == min(options)[0])
    cheap = [one for one in options if one[1] <= CHEAP] or options[:1]
    _, work, name, rank = cheap[index % len(cheap)]
    return LayerPlan(spec, name, rank), work
