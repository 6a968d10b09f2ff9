"""What a fit came to: the plan as it was carried out, and what its user should know."""

from __future__ import annotations

from dataclasses import replace

from factorize.fit.layer import Fitted
from factorize.types import LayerPlan, Plan

OVERFITTED = 1.2  # held-out errors above so many times the fitted ones are told


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
    if how == "weights":
        return [
            "fitted to the weights alone, as if all inputs were alike; give --data (a few hundred "
            "images, no labels) to fit the layers' outputs, at half the error or less"
        ]
    over = {
        name: made.held_out_error / made.error
        for name, made in fitted.layers.items()
        if made.held_out_error and made.error and made.held_out_error > OVERFITTED * made.error
    }
    if not over:
        return []
    worst = max(over, key=lambda name: over[name])
    return [
        f"{len(over)} layer(s) err more than {OVERFITTED:g} times as much on held-out images as on "
        f"those fitted to (most: {worst}, {over[worst]:.2f} times); give more images"
    ]
