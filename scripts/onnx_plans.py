"""Plans for ONNX files of all families: ranks of one share, in closed form."""

from __future__ import annotations

from typing import Any

from factorize.methods import get
from factorize.plan.choose import chain_layer, cost, dense_layer
from factorize.types import ConvSite, LayerPlan, Plan

_MOST = 2**25  # weights of a linear layer that is replaced
_LARGE = 800  # rows of a matrix whose SVD takes long


def method_of(site: ConvSite) -> Any:
    """Of a layer: by rows and columns where its SVD is quick, else by channels."""
    spec = site.spec
    axes = [k for k in spec.kernel if k > 1]
    rows = min(spec.group_inputs, spec.group_outputs) * max(axes, default=1)
    spatial = get("spatial_svd")
    if len(spec.kernel) == 2 and len(axes) == 2 and rows <= _LARGE and not spatial.supports(spec):
        return spatial
    return get("channel_svd")


def planned(site: ConvSite, share: float | None) -> LayerPlan:
    """A layer at a share of the largest rank, where that saves; None: at the largest, exactly."""
    spec, method = site.spec, method_of(site)
    if not spec.kernel and spec.params > _MOST:
        return dense_layer(spec, "its SVD takes minutes", ())
    if reason := site.blocked or method.supports(spec):
        return dense_layer(spec, reason, ())
    (top,) = method.max_rank(spec)
    variants = method.variants_of(spec)
    if share is None:
        if method.name == "channel_svd":  # the one whose matrix has no larger rank
            few_out = spec.group_outputs <= spec.group_inputs
            variant = variants[0 if few_out else -1]
        else:
            high, wide = spec.kernel
            exact = min(spec.group_inputs * high, spec.group_outputs * wide) <= top
            variant = variants[0 if exact else -1]
        return chain_layer(site, method, (top,), variant, None, ())
    rank = (max(1, round(share * top)),)
    variant = min(variants, key=lambda one: cost(method, spec, rank, one)[0])
    if cost(method, spec, rank, variant)[0] >= spec.macs:
        return dense_layer(spec, "does not save", ())
    return chain_layer(site, method, rank, variant, None, ())


def plan_of(sites: tuple[ConvSite, ...], names: set[str], share: float | None) -> Plan:
    """All named layers at one share of their ranks."""
    layers = (
        planned(one, share) if one.spec.name in names else dense_layer(one.spec, "not asked", ())
        for one in sites
    )
    return Plan(tuple(layers), {})


def halved(sites: tuple[ConvSite, ...], macs: int) -> tuple[Plan, float, str]:
    """The plan nearest to half the MACs from below, its share of them, and what was replaced.

    Convolutions alone, or linear layers too where those do not get there.
    """
    convs = {one.spec.name for one in sites if one.spec.kernel}
    plan, left, which = Plan((), {}), 1.0, ""
    for names, which in ((convs, "convolutions"), ({s.spec.name for s in sites}, "all layers")):  # noqa: B007
        low, high = 0.0, 1.0
        for _ in range(12):
            share = (low + high) / 2
            plan = plan_of(sites, names, share)
            left = 1 - sum(one.spec.macs - one.macs for one in plan.layers) / macs
            low, high = (share, high) if left <= 0.5 else (low, share)
        plan = plan_of(sites, names, low)
        left = 1 - sum(one.spec.macs - one.macs for one in plan.layers) / macs
        if left <= 0.5:
            break
    return plan, left, which
