"""Fit layers one by one: to their weights, or to their outputs on the original's inputs."""

from __future__ import annotations

from torch import nn

from factorize import calibrate, methods
from factorize.fit.layer import Fitted, fit_layer, shared_layers, summed
from factorize.graph import check_layer, effective_weight
from factorize.tensor.moments import Calibration
from factorize.types import Plan, Progress


def fit_weights(
    model: nn.Module, plan: Plan, *, seed: int = 0, progress: Progress | None = None
) -> Fitted:
    """Factorize every planned layer in the identity norm, all that can be done without data.

    Raises
    ------
    PlanError, UnsupportedLayerError, RankError
        The plan does not fit the model.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    fitted = Fitted({})
    for index, layer in enumerate(plan.factorized):
        check_layer(modules.get(layer.spec.name), layer.spec)
        weight = effective_weight(modules[layer.spec.name])
        fitted.layers[layer.spec.name] = methods.factorize(layer, weight, seed=seed)
        if progress:
            progress("factorize", index + 1, len(plan.factorized), {})
    return fitted


def fit_outputs(
    model: nn.Module,
    plan: Plan,
    calibration: Calibration,
    *,
    any_order: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Fitted:
    """Fit every planned layer's output, given the moments of its inputs in the original.

    Layers that share a weight are fitted to the sum of their uses.

    Raises
    ------
    DataError
        The calibration is not of this model, or lacks a layer.
    PlanError, UnsupportedLayerError, RankError
        The plan does not fit the model.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    layers = {layer.spec.name: layer for layer in plan.factorized}
    for name, layer in layers.items():
        check_layer(modules.get(name), layer.spec)
    calibrate.check(calibration, {name: layer.spec for name, layer in layers.items()})
    sharing = shared_layers(model, layers)
    fitted = Fitted({})
    for index, (name, layer) in enumerate(layers.items()):
        moments = summed([calibration.layers[other] for other in sharing[name]])
        fitted.layers[name] = fit_layer(
            layer, modules[name], moments, any_order=any_order, seed=seed
        )
        if progress:
            progress("factorize", index + 1, len(layers), {})
    return fitted
