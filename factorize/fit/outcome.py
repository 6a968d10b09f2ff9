"""What a fit came to: the plan as it was carried out, and what its user should know."""

from __future__ import annotations

from dataclasses import replace

from factorize.fit.layer import Fitted
from factorize.types import LayerPlan, Plan

OVERFITTED = 1.2  # held-out errors above so many times the fitted ones are told,
TOLD = 0.01  # unless they are below this: the ratio of two roundings says nothing


def as_fitted(plan: Plan, fitted: Fitted) -> Plan:
    """The plan with each chain in the order that was fitted best."""

    def settled(layer: LayerPlan) -> LayerPlan:
        made = fitted.layers.get(layer.spec.name)
        if made is None or made.variant == layer.variant:
            return layer
        return replace(
            layer, variant=made.variant, error=None, macs=sum(s.macs for s in made.stages),
            params=sum(s.params for s in made.stages),
        )  # fmt: skip

    return replace(plan, layers=tuple(settled(layer) for layer in plan.layers))


def fit_remarks(how: str, fitted: Fitted) -> list[str]:
    """What was given up without data, or where too few images were fitted to."""
    remarks = []
    if how == "weights":
        remarks.append(
            "fitted to the weights alone, as if all inputs were alike; --fit sequential, the "
            "default with --data (a few hundred images, no labels), fits the layers' outputs, "
            "which keeps far more of the accuracy before any training"
        )
    elif grouped := [made for made in fitted.layers.values() if made.spec.groups > 1]:
        remarks.append(f"{len(grouped)} grouped layer(s) fitted to the weights alone")
    if fitted.blocks:
        remarks.append(
            f"errors of layers are those before {fitted.blocks} block(s) were tuned as a whole"
        )
    elif fitted.blocks == 0:
        remarks.append(
            "--reconstruct tuned nothing: no fitted layer is in a module of a few layers, or in an "
            "nn.Sequential, that is called once with one tensor for one"
        )
    over = {
        made.spec.label: (made.held_out_error or 0) / made.error
        for made in fitted.layers.values()
        if made.error and (made.held_out_error or 0) > max(OVERFITTED * made.error, TOLD)
    }
    if over:
        worst = max(over, key=lambda name: over[name])
        remarks.append(
            f"{len(over)} layer(s) err more than {OVERFITTED:g} times as much on held-out images "
            f"as on those fitted to (most: {worst}, {over[worst]:.2f} times); give more images"
        )
    return remarks
