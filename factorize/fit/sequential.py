"""Fit layers in the order of execution, each from what the layers fitted before it hand on."""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from factorize import calibrate, graph
from factorize.calibrate import MomentSums
from factorize.errors import DataError
from factorize.fit.layer import Fitted, fit_layer, grouped, shared_layers
from factorize.fit.layerwise import fit_outputs, fit_weights
from factorize.fit.lockstep import Decision, Lockstep
from factorize.fit.trace import Shortcut, trace
from factorize.tensor.call import batch_size, call, evaluating, rows_of
from factorize.tensor.layout import laid_out
from factorize.tensor.moments import LayerCalibration
from factorize.types import LayerPlan, Plan, Progress

_log = logging.getLogger(__name__)


def fit_sequential(
    model: nn.Module,
    plan: Plan,
    images: Sequence[Any],
    *,
    any_order: bool = False,
    memory: float = 2e9,
    seed: int = 0,
    progress: Progress | None = None,
    known: dict[Hashable, Any] | None = None,
) -> Fitted:
    """Fit every planned layer to the original's output, given the compressed net's input to it.

    Errors of earlier layers are made up for by later ones (Zhang et al., TPAMI 2016, section 3.3);
    a layer whose output is added to a shortcut makes up for what the shortcut has lost too. Biases
    and the running means of batch norms are corrected on the way, so that each layer hands on the
    original's mean. A layer that is called several times, or whose weight others share, is fitted
    to the sum of its uses in the original: its later inputs depend on its own fit.

    Parameters
    ----------
    images
        Batches (n, C, H, W), as the model takes them, on its device; every fifth image is held
        out, and the errors on those are reported beside the others.
    any_order
        Fit each order of a chain that saves MACs, and keep the best.
    memory
        Bytes for activations; where they need more, they are computed anew for each layer.
    known
        What was found for other plans of this model, with the same images and settings: up to the
        first layer that is planned otherwise it holds for this one too. Added to.

    Raises
    ------
    DataError
        The images do not fit the model or do not reach a layer, or the model mixes images.
    PlanError, UnsupportedLayerError, RankError
        The plan does not fit the model.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    layers = {layer.spec.name: layer for layer in plan.factorized}
    for name, layer in layers.items():
        graph.check_layer(modules.get(name), layer.spec)
    sharing = shared_layers(model, layers)
    fitted = fit_weights(model, grouped(plan), seed=seed)
    shared = [
        n
        for n in layers
        if n not in fitted.layers and (len(sharing[n]) > 1 or len(layers[n].spec.input_sizes) > 1)
    ]
    if shared:
        of_shared = replace(plan, layers=tuple(layers[name] for name in shared))
        specs = {name: layers[name].spec for name in shared}
        moments = calibrate.collect_each(model, specs, images, memory=memory, seed=seed)
        found = fit_outputs(model, of_shared, moments, any_order=any_order, seed=seed)
        fitted.layers.update(found.layers)

    parts = [[laid_out(model, one) for one in part] for part in calibrate.split(images)]
    norms = {
        name: module
        for name, module in modules.items()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
    convs = {
        name: module
        for name, module in modules.items()
        if isinstance(module, _ConvNd) or name in layers
    }
    corrected: dict[str, Decision] = {}
    known, before = {} if known is None else known, ()  # what the images came through so far
    with evaluating(model):
        order, added = trace(model, convs | norms, rows_of(parts[0][0], slice(1)))
        added = {name: shortcut for name, shortcut in added.items() if name in layers}
        first = next((index for index, name in enumerate(order) if name in layers), 0)
        norms = {name: norms[name] for name in order[first:] if name in norms}
        batches = [*parts[0], *parts[1]]
        keep = {added[name].source: name for name in order if name in added}
        stops = {name: modules[name] for name in (*layers, *keep)} | norms
        with Lockstep(model, stops, batches, memory, keep=keep) as lockstep:
            while (name := lockstep.next()) is not None:
                if name in norms:
                    if name not in corrected:  # one mean for all of its calls: that of the first
                        if (name, before) not in known:
                            known[name, before] = _moved(norms[name], lockstep, len(parts[0]))
                        corrected[name] = None
                        if (mean := known[name, before]) is not None:
                            fitted.means[name] = mean
                            corrected[name] = partial(_normalized, norms[name], mean)
                    lockstep.decide(corrected[name])
                    continue
                if name not in layers:  # the source of a shortcut
                    lockstep.decide(None)
                    continue
                module, layer = modules[name], layers[name]
                before = (*before, layer.key)
                if name not in fitted.layers:
                    if before not in known:
                        start = time.perf_counter()
                        moments = _moments(layer, module, lockstep, parts, added.get(name), seed)
                        _log.debug("moments of %s in %.2f s", name, time.perf_counter() - start)
                        known[before] = fit_layer(
                            layer, module, moments, any_order=any_order, seed=seed
                        )
                    fitted.layers[name] = known[before]
                    if progress:
                        progress("factorize", len(fitted.layers), len(layers), {})
                lockstep.decide(graph.build_chain(fitted.layers[name], module))
            _check_apart(model, batches[0], lockstep.output)
    if missing := [name for name in layers if name not in fitted.layers]:
        raise DataError(
            f"{missing[0]}: must be called with the calibration images, and was not. "
            "Leave it alone with --exclude, or use --fit weights."
        )
    return fitted


def _moments(
    layer: LayerPlan,
    module: nn.Module,
    lockstep: Lockstep,
    parts: Sequence[Sequence[Any]],
    shortcut: Shortcut | None,
    seed: int,
) -> LayerCalibration:
    """The moments of a layer's input in the compressed net, and of the output wanted there."""
    per_image = calibrate.positions_per_image(layer.spec, sum(map(batch_size, parts[0])))
    sums = [MomentSums(layer.spec, per_image=per_image, seed=seed) for _ in parts]
    for arrival in lockstep.arrivals():
        wanted = arrival.output
        if isinstance(module.bias, Tensor):
            axes = layer.spec.kernel
            wanted = wanted - module.bias.reshape(-1, *(1 for _ in axes))
        if shortcut is not None:
            wanted = shortcut.wanted(wanted, *arrival.kept[shortcut.source])
        held_out = arrival.batch >= len(parts[0])
        sums[held_out].add(arrival.compressed, wanted)
    return LayerCalibration(sums.pop(0).finish(), sums.pop(0).finish())  # large, one at a time


def _moved(norm: _BatchNorm, lockstep: Lockstep, fits: int) -> Tensor | None:
    """The running mean of a batch norm, moved as far as the mean of its input; None: it has not."""
    assert norm.running_mean is not None
    shift, count = torch.zeros_like(norm.running_mean, dtype=torch.float64), 0
    for arrival in lockstep.arrivals():
        if arrival.batch < fits:
            moved = (arrival.compressed - arrival.original).transpose(0, 1).flatten(1)
            shift, count = shift + moved.sum(1).double(), count + moved.shape[1]
    if not shift.any():
        return None
    return norm.running_mean + (shift / count).to(norm.running_mean)


def _normalized(norm: _BatchNorm, mean: Tensor, x: Tensor) -> Tensor:
    return F.batch_norm(x, mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def _check_apart(model: nn.Module, images: Any, output: Any) -> None:
    """A model that lets one image see another cannot carry two networks in one batch."""
    with torch.no_grad():
        alone = tree_leaves(call(model, images))
    for one, twice in zip(alone, tree_leaves(output), strict=False):
        if not isinstance(one, Tensor) or not one.is_floating_point():
            continue
        if one.shape == twice.shape:  # has no axis of images
            continue
        first = twice.chunk(2)[0]
        if first.shape != one.shape or not (first - one).norm() <= 0.01 * one.norm():
            raise DataError(
                f"{type(model).__name__}: its output for an image must not depend on the other "
                "images of the batch, and does. Use --fit outputs."
            )
