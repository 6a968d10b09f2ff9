"""Choose a method, a rank and an order for each layer, or the reason to leave it alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from factorize.errors import PlanError, UnsupportedLayerError
from factorize.methods.base import Method, get, names
from factorize.methods.factorize import chain_of, predicted_error
from factorize.plan.rule import Rule, rule_of
from factorize.plan.select import FEW_CHANNELS, check_globs, forbidden, skip_reason
from factorize.spec import ConvSpec, Rank
from factorize.types import ConvSite, LayerPlan, Plan, Progress

_DEFAULTS = ("spatial_svd", "channel_svd")
"""The first whose axes a layer has."""


def choose(
    sites: Sequence[ConvSite],
    weight_of: Callable[[str], Tensor],
    *,
    method: str | None = None,
    rank: int | float | str | None = None,
    energy: float | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    allow_costlier: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """One rule for all layers: a fixed rank, a share of the maximum, of the energy, or VBMF.

    By rule, convolutions that read at most four channels (the image) and 1x1 convolutions stay
    as they are, since they cost the most accuracy per MAC won; a pattern in `include` that
    matches their name overrides this.

    Parameters
    ----------
    sites
        From `factorize.find`.
    weight_of
        The weight (O, I, k_h, k_w) of a layer, by its name.
    method
        One for all layers. None: `spatial_svd`, and `channel_svd` where a kernel has fewer than the
        two axes that it needs.
    rank
        An integer (clamped to each layer's maximum, and noted), a share of the maximum in (0, 1],
        or ``"vbmf"``.
    energy
        Share of the kernel's squared norm to keep, in (0, 1]; instead of `rank`.
    include, exclude
        Globs on module names.
    allow_costlier
        Also factorize where the chain costs as many MACs as the layer, or more.

    Raises
    ------
    RankError, UnsupportedLayerError, NoConvolutionError
        The rule is out of range, the method does not exist, or a glob matches nothing.
    """
    by_axes = [get(name) for name in ([method] if method else _DEFAULTS)]
    rule = rule_of(rank, energy)
    check_globs(sites, include, exclude)
    planned: dict[str, LayerPlan] = {}
    for index, site in enumerate(sites):
        leader = next((planned[name] for name in site.tied if name in planned), None)
        fits = (one for one in by_axes if len(site.spec.kernel) >= one.min_axes)
        chosen = next(fits, by_axes[-1])
        reason = skip_reason(site, chosen, include, exclude)
        if reason:
            plan = dense_layer(site.spec, reason, site.notes)
        elif leader and leader.method and leader.spec.weight_shape == site.spec.weight_shape:
            same = leader.rank, leader.variant
            plan = chain_layer(site, chosen, *same, leader.error, leader.notes)
        else:
            weight = weight_of(site.spec.name).to("cpu", torch.float64)
            plan = _choose_layer(site, chosen, weight, rule, allow_costlier, seed)
        planned[site.spec.name] = plan
        if progress:
            progress("plan", index + 1, len(sites), {})
    layers = tuple(note_untied(site, planned) for site in sites)
    used = ",".join(dict.fromkeys(layer.method for layer in layers if layer.method))
    settings: dict[str, Any] = {
        "method": method or used or _DEFAULTS[0],
        ("energy" if energy is not None else "rank"): energy if energy is not None else rank,
        "include": list(include),
        "exclude": list(exclude),
        "allow_costlier": allow_costlier,
        "seed": seed,
    }
    return Plan(layers, settings)


def bind(plan: Plan, sites: Sequence[ConvSite], weight_of: Callable[[str], Tensor]) -> Plan:
    """Check a plan, perhaps edited by hand, against a model, and compute its costs anew.

    A layer without a variant of its method gets the better one. Layers that the plan does not name
    stay dense.

    Raises
    ------
    PlanError
        A layer is not in the model, or differs from it.
    RankError, UnsupportedLayerError
        A rank is out of range; a method does not exist or does not apply.
    """
    by_name = {site.spec.name: site for site in sites}
    for layer in plan.layers:
        site = by_name.get(layer.spec.name)
        if site is None:
            raise PlanError(
                f"{layer.spec.label}: a plan must name convolutions of the model, and this is "
                "none. Make the plan from this model, or delete the entry."
            )
        if difference := site.spec.difference(layer.spec):
            raise PlanError(f"{layer.spec.label}: {difference}. Make the plan from this model.")
    wanted = {layer.spec.name: layer for layer in plan.layers}
    bound: dict[str, LayerPlan] = {}
    for site in sites:
        layer = wanted.get(site.spec.name)
        if layer is None or layer.method is None:
            reason = "null in the plan" if layer else "not in the plan"
            reason = (layer and layer.skip_reason) or reason
            bound[site.spec.name] = dense_layer(site.spec, reason, site.notes)
            continue
        method = get(layer.method, site.spec.label)
        if reason := forbidden(site, method):
            raise PlanError(
                f"{site.spec.label}: cannot be factorized: {reason}. Set its method to null."
            )
        known, variant = check_layer(replace(layer, spec=site.spec)), layer.variant
        weight = weight_of(site.spec.name).to("cpu", torch.float64)
        if not known:
            variant, _ = _better(method, site.spec, weight, layer.rank, allow_costlier=True)
        error = predicted_error(method, site.spec, weight, layer.rank, variant)
        bound[site.spec.name] = chain_layer(site, method, layer.rank, variant, error, site.notes)
    return Plan(tuple(note_untied(site, bound) for site in sites), plan.settings)


def check_layer(layer: LayerPlan) -> bool:
    """Check the method and the rank of a planned layer, perhaps edited by hand.

    Returns
    -------
    Whether its variant is one of the method's: an edited method leaves that of another behind.

    Raises
    ------
    RankError, UnsupportedLayerError
        A rank is out of range; a method or a variant does not exist or does not apply.
    """
    method = get(layer.method or "", layer.spec.label)
    known = layer.variant in method.variants
    if not known and not any(layer.variant in get(name).variants for name in names()):
        raise UnsupportedLayerError(
            f"{layer.spec.label}: variant must be one of {list(method.variants)} for "
            f"{method.name}, got {layer.variant!r}. Or set it to null: the better one is taken."
        )
    chain_of(replace(layer, variant=layer.variant if known else method.variants[0]))
    return known


def _choose_layer(
    site: ConvSite, method: Method, weight: Tensor, rule: Rule, allow_costlier: bool, seed: int
) -> LayerPlan:
    spec = site.spec
    notes = list(site.notes)
    kind, value = rule
    limit = method.max_rank(spec)
    if kind in ("fixed", "share"):
        fixed = method.rank_of(int(value), spec) if kind == "fixed" else ()
        wanted = fixed or [round(value * top) for top in limit]
        rank = tuple(int(min(max(w, 1), top)) for w, top in zip(wanted, limit, strict=True))
        if kind == "fixed" and rank != tuple(wanted):
            notes.append(f"rank {value} clamped to the maximum, {','.join(map(str, rank))}")
        variant, error = _better(method, spec, weight, rank, allow_costlier)
    else:
        choices = []
        for name in method.variants_of(spec):
            if kind == "energy":
                most = limit if allow_costlier else _most_that_saves(method, spec, name)
                each = [
                    method.rank_for_energy(part, value, name, most=most, seed=seed)
                    for part in weight.chunk(spec.groups)
                ]
            else:
                each = [method.rank_by_vbmf(part, name) for part in weight.chunk(spec.groups)]
            found = tuple(map(max, zip(*each, strict=True)))
            if any(r > top for r, top in zip(found, limit, strict=True)):
                continue  # another order reproduces the kernel at the limit
            rank = tuple(max(r, 1) for r in found)
            choices.append((cost(method, spec, rank, name)[0], rank, name, 0 in found))
        # Each order keeps the same share at a rank of its own: the cheaper one is the better one.
        _, rank, variant, was_zero = min(choices, key=lambda choice: choice[0])
        if was_zero:
            notes.append("VBMF found nothing but noise (rank 0); 1 was taken")
        error = predicted_error(method, spec, weight, rank, variant)
    macs, _ = cost(method, spec, rank, variant)
    if macs >= spec.macs and not allow_costlier:
        ranks = ",".join(map(str, rank))
        return dense_layer(
            spec, f"{method.name} at rank {ranks} would cost {macs:,} of {spec.macs:,} MACs", notes
        )
    lossy = error is None or error > 1e-6
    cut = rank != limit and lossy
    if rank == limit and lossy and error is not None:
        notes.append(
            "at this rank, its largest, the exact order costs more than the layer, and this one "
            f"loses {error:.0%} of the weights: see --allow-costlier, or --exclude it"
        )
    if spec.out_channels <= FEW_CHANNELS and cut:
        ranks, tops = (",".join(map(str, each)) for each in (rank, limit))
        notes.append(
            f"puts out {spec.out_channels} channels only, of which rank {ranks} of {tops} loses a "
            "part: see what it costs, or --exclude it"
        )
    return chain_layer(site, method, rank, variant, error, notes)


def _better(
    method: Method, spec: ConvSpec, weight: Tensor, rank: Rank, allow_costlier: bool
) -> tuple[str, float | None]:
    """The order with the lower error among those that save MACs; of equal ones the cheaper."""
    choices = []
    for variant in method.variants_of(spec):
        macs, _ = cost(method, spec, rank, variant)
        costlier = macs >= spec.macs and not allow_costlier
        error = predicted_error(method, spec, weight, rank, variant)
        # Rounding must not decide between two orders that are both exact.
        choices.append((costlier, round(error or 0.0, 7), macs, variant, error))
    best = min(choices, key=lambda choice: choice[:3])
    return best[3], best[4]


def _most_that_saves(method: Method, spec: ConvSpec, variant: str) -> Rank:
    """The largest rank of one number that costs fewer MACs than the layer."""
    limit = method.max_rank(spec)

    def rank_of(value: int) -> Rank:
        return tuple(map(min, method.rank_of(max(value, 1), spec), limit))

    low, high = 0, max(limit)
    while low < high:  # MACs rise with the rank
        middle = (low + high + 1) // 2
        if cost(method, spec, rank_of(middle), variant)[0] < spec.macs:
            low = middle
        else:
            high = middle - 1
    return rank_of(low)


def cost(method: Method, spec: ConvSpec, rank: Rank, variant: str) -> tuple[int, int]:
    """MACs and parameters of a chain."""
    stages = method.stages(spec, rank, variant)
    return sum(s.macs for s in stages), sum(s.params for s in stages)


def chain_layer(
    site: ConvSite,
    method: Method,
    rank: Rank,
    variant: str,
    error: float | None,
    notes: Sequence[str],
) -> LayerPlan:
    """A layer that is replaced."""
    macs, params = cost(method, site.spec, rank, variant)
    return LayerPlan(site.spec, method.name, rank, variant, macs, params, error, notes=tuple(notes))


def dense_layer(spec: ConvSpec, reason: str, notes: Sequence[str]) -> LayerPlan:
    """A layer that stays as it is, and why."""
    del notes  # they tell what a replacement does
    return LayerPlan(spec, macs=spec.macs, params=spec.params, skip_reason=reason)


def note_untied(site: ConvSite, planned: dict[str, LayerPlan]) -> LayerPlan:
    """Say so where layers that shared a weight no longer do."""
    layer = planned[site.spec.name]
    if not layer.method:
        return layer

    def choice(one: LayerPlan) -> tuple[Any, ...]:
        return one.method, one.rank, one.variant

    parted = [name for name in site.tied if choice(planned[name]) != choice(layer)]
    notes = [f"no longer shares its weight with {name}" for name in parted]
    return replace(layer, notes=(*layer.notes, *notes))
