"""Fit one layer to what calibration tells of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from factorize import graph, methods
from factorize.tensor.moments import (
    LayerCalibration,
    Moments,
    centred,
    output_error,
    shrinkage,
    target_and_norm,
)
from factorize.types import Factorization, LayerPlan, Plan

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitted:
    """All that a fit changes in a model.

    Attributes
    ----------
    layers
        By the name of the convolution.
    means
        New running means of batch norms, by name.
    blocks
        How many were reconstructed; None: that was not asked for.
    """

    layers: dict[str, Factorization]
    means: dict[str, Tensor] = field(default_factory=dict)
    blocks: int | None = None


def apply_(model: nn.Module, fitted: Fitted) -> nn.Module:
    """Put the fit into the model in place; returns the model, or the chain of a root."""
    modules = dict(model.named_modules(remove_duplicate=False))
    rewritten = graph.rewrite_(model, fitted.layers)
    with torch.no_grad():
        for name, mean in fitted.means.items():
            modules[name].running_mean.copy_(mean)  # type: ignore[union-attr, operator]
    return rewritten


def rebased(fitted: Fitted, seen: nn.Module, model: nn.Module) -> Fitted:
    """What was fitted for one model, for another that differs in what its batch norms hold."""
    there, here = (dict(one.named_modules(remove_duplicate=False)) for one in (seen, model))
    means = {
        name: here[name].running_mean + mean - there[name].running_mean  # type: ignore[operator]
        for name, mean in fitted.means.items()
    }
    return replace(fitted, means=means)


def fit_layer(
    layer: LayerPlan,
    module: nn.Module,
    calibration: LayerCalibration,
    *,
    centre: bool = True,
    any_order: bool = False,
    held_out: bool = True,
    seed: int,
) -> Factorization:
    """Fit a layer in the norm of its output; its bias, where it has one, makes up for the mean.

    Without `centre` the weights are fitted as if there were no bias, as those of another layer are
    that has the same weight and none.

    With `any_order`, each order of the chain that saves MACs is fitted and the best one kept.
    Without `held_out` the error on the images held out is not measured.
    Errors are those of the outputs, relative to the outputs wanted (to their deviation from the
    mean where there is a bias).
    """
    start = time.perf_counter()
    weight = graph.effective_weight(module).to("cpu", torch.float64)
    bias = module.bias if isinstance(module.bias, Tensor) else None
    judged = calibration
    if bias is not None:
        judged = LayerCalibration(centred(calibration.fit), centred(calibration.held_out))
    parts = judged if centre else calibration
    target, norm = target_and_norm(parts.fit, weight, shrinkage(parts))
    orders = _orders(layer) if any_order else [layer]
    several = len(orders) > 1
    candidates = [
        methods.factorize(order, target, norm=norm, measured=several, seed=seed) for order in orders
    ]
    made = min(candidates, key=lambda candidate: candidate.error)
    kernel = methods.chain_kernel(made.stages, made.weights)
    missed = 0.0
    if bias is not None:
        bias, best = (
            _bias(part, weight, kernel, bias) for part in (calibration.fit, calibration.held_out)
        )
        missed = float((bias - best).square().sum())
    error = output_error(judged.fit, weight, kernel)
    _log.debug(
        "fit %s: %s %s: error %.3g in %.2f s",
        layer.spec.name, layer.method, made.rank, error, time.perf_counter() - start,
    )  # fmt: skip
    if held_out:
        apart = output_error(judged.held_out, weight, kernel, mean_error=missed)
        made = replace(made, held_out_error=apart)
    return replace(made, error=error, bias=bias)


def _orders(layer: LayerPlan) -> list[LayerPlan]:
    """The layer in its planned order, and in the others that save MACs."""
    method = methods.get(layer.method or "")
    others = [replace(layer, variant=v) for v in method.variants_of(layer.spec)]
    return [layer] + [
        other
        for other in others
        if other.variant != layer.variant
        and sum(stage.macs for stage in methods.chain_of(other)) < layer.spec.macs
    ]


def _bias(moments: Moments, weight: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """The bias with which the mean output is the one that is wanted."""
    wanted = moments.output_mean
    if wanted is None:
        wanted = weight.flatten(1) @ moments.mean
    return bias.detach().to("cpu", torch.float64) + wanted - kernel.flatten(1) @ moments.mean


def grouped(plan: Plan) -> Plan:
    """The planned layers that have groups, which are fitted to their weights."""
    return replace(plan, layers=tuple(one for one in plan.factorized if one.spec.groups > 1))


def shared_layers(model: nn.Module, layers: Mapping[str, LayerPlan]) -> dict[str, list[str]]:
    """Planned layers by each one's name, itself among them, that share its weight."""
    modules = dict(model.named_modules(remove_duplicate=False))
    sharing: dict[int, list[str]] = {}
    for name in layers:
        sharing.setdefault(id(modules[name]._parameters.get("weight", modules[name])), []).append(
            name
        )
    return {name: same for same in sharing.values() for name in same}


def summed(parts: list[LayerCalibration]) -> LayerCalibration:
    """The moments of several uses of one weight, each use counted by its patches."""
    if len(parts) == 1:
        return parts[0]
    return LayerCalibration(
        _mean([part.fit for part in parts]), _mean([part.held_out for part in parts])
    )


def _mean(uses: list[Moments]) -> Moments:
    total = sum(use.count for use in uses)

    def mean(tensors: list[Tensor]) -> Tensor:
        weighed = [t * (use.count / total) for t, use in zip(tensors, uses, strict=True)]
        return torch.stack(weighed).sum(0)

    second = tuple(mean(list(matrices)) for matrices in zip(*(u.second for u in uses), strict=True))
    return Moments(second, mean([u.mean for u in uses]), total, max(u.images for u in uses))
