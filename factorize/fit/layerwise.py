"""Fit layers one by one: to their weights, or to their outputs on the original's inputs."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from factorize import calibrate, methods
from factorize.fit.layer import Fitted, fit_layer, grouped, shared_layers, summed
from factorize.graph import check_layer, effective_weight
from factorize.tensor.moments import Calibration, LayerCalibration
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
    calibration: Calibration | Iterable[tuple[str, LayerCalibration]],
    *,
    any_order: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Fitted:
    """Fit every planned layer's output, given the moments of its inputs in the original.

    Layers that share a weight are fitted to the sum of their uses; grouped ones to their weights.

    Parameters
    ----------
    calibration
        Of every planned layer at least; or those of just these layers by name, one at a time.

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
    fitted, waiting = fit_weights(model, grouped(plan), seed=seed), dict[str, LayerCalibration]()
    rest = {name: layer for name, layer in layers.items() if name not in fitted.layers}
    if isinstance(calibration, Calibration):
        calibrate.check(calibration, {name: layer.spec for name, layer in rest.items()})
        calibration = [(name, calibration.layers[name]) for name in rest]
    sharing = shared_layers(model, rest)
    for arrived, of_layer in calibration:
        waiting[arrived] = of_layer
        if not all(name in waiting for name in sharing[arrived]):
            continue
        moments = summed([waiting.pop(name) for name in sharing[arrived]])
        centre = all(isinstance(modules[name].bias, Tensor) for name in sharing[arrived])
        for name in sharing[arrived]:
            fitted.layers[name] = fit_layer(
                layers[name], modules[name], moments, centre=centre, any_order=any_order, seed=seed
            )
            if progress:
                progress("factorize", len(fitted.layers), len(layers), {})
    return fitted
