"""Fit layers in the order of execution, each from what the layers fitted before it hand on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from factorize import calibrate, graph
from factorize.calibrate import MomentSums
from factorize.errors import DataError
from factorize.fit.layer import Fitted, fit_layer, shared_layers
from factorize.fit.layerwise import fit_outputs
from factorize.fit.lockstep import Decision, Lockstep
from factorize.tensor.call import evaluating
from factorize.tensor.moments import LayerCalibration
from factorize.types import LayerPlan, Plan, Progress


def fit_sequential(
    model: nn.Module,
    plan: Plan,
    images: Sequence[Tensor],
    *,
    memory: float = 2e9,
    seed: int = 0,
    progress: Progress | None = None,
) -> Fitted:
    """Fit every planned layer to the original's output, given the compressed net's input to it.

    Errors of earlier layers are made up for by later ones (Zhang et al., TPAMI 2016, section 3.3).
    Biases and the running means of batch norms are corrected on the way, so that each layer hands
    on the original's mean. A layer that is called several times, or whose weight others share, is
    fitted to the sum of its uses in the original: its later inputs depend on its own fit.

    Parameters
    ----------
    images
        Batches (n, C, H, W), as the model takes them, on its device; every fifth image is held
        out, and the errors on those are reported beside the others.
    memory
        Bytes for activations; more are computed anew.

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
    shared = [n for n in layers if len(sharing[n]) > 1 or len(layers[n].spec.input_sizes) > 1]
    fitted = Fitted({})
    if shared:
        of_shared = replace(plan, layers=tuple(layers[name] for name in shared))
        specs = {name: layers[name].spec for name in shared}
        moments = calibrate.collect(model, specs, images, memory=memory, seed=seed)
        fitted.layers.update(fit_outputs(model, of_shared, moments, seed=seed).layers)

    norms = {
        n: m for n, m in modules.items() if isinstance(m, _BatchNorm) and m.track_running_stats
    }
    fit, held_out = calibrate.split(images)
    stops = {name: modules[name] for name in layers} | norms
    with evaluating(model), Lockstep(model, stops, [*fit, *held_out], memory) as lockstep:
        while (name := lockstep.next()) is not None:
            if name in norms:
                lockstep.decide(_corrected(name, modules[name], lockstep, len(fit), fitted))
                continue
            if name not in fitted.layers:
                moments = _moments(layers[name], lockstep, len(fit), fit, held_out, seed)
                fitted.layers[name] = fit_layer(layers[name], modules[name], moments, seed=seed)
                if progress:
                    progress("factorize", len(fitted.layers), len(layers), {})
            lockstep.decide(graph.build_chain(fitted.layers[name], modules[name]))
        _check(model, fit[0], lockstep.output)
    if missing := [name for name in layers if name not in fitted.layers]:
        raise DataError(
            f"{missing[0]}: must be called with the calibration images, and was not. "
            "Leave it alone with --exclude, or use --fit weights."
        )
    return fitted


def _moments(
    layer: LayerPlan,
    lockstep: Lockstep,
    fits: int,
    fit: Sequence[Tensor],
    held_out: Sequence[Tensor],
    seed: int,
) -> LayerCalibration:
    """The moments of a layer's input in the compressed net and of its output in the original."""
    spec = layer.spec
    sums = []
    for part in (fit, held_out):
        per_image = calibrate.positions_per_image(spec, sum(map(len, part)))
        sums.append(MomentSums(spec, per_image=per_image, seed=seed))
    for arrival in lockstep.arrivals():
        into = sums[0] if arrival.batch < fits else sums[1]
        bias = lockstep.layers[spec.name].bias
        plain = arrival.output - bias[:, None, None] if isinstance(bias, Tensor) else arrival.output
        into.add(arrival.compressed, plain)
    return LayerCalibration(*(s.finish() for s in sums))


def _corrected(
    name: str, module: nn.Module, lockstep: Lockstep, fits: int, fitted: Fitted
) -> Decision:
    """The batch norm with its running mean moved as far as the mean of its input has moved."""
    assert isinstance(module, _BatchNorm)
    assert module.running_mean is not None
    shift, count = torch.zeros((), dtype=torch.float64), 0
    for arrival in lockstep.arrivals():
        if arrival.batch < fits:
            moved = (arrival.compressed - arrival.original).transpose(0, 1).flatten(1)
            shift, count = shift + moved.double().sum(1).cpu(), count + moved.shape[1]
    if not shift.any():
        return None
    mean = module.running_mean + (shift / count).to(module.running_mean)
    fitted.means[name] = mean

    def normalized(x: Tensor) -> Tensor:
        return F.batch_norm(x, mean, module.running_var, module.weight, module.bias, eps=module.eps)

    return normalized


def _check(model: nn.Module, images: Tensor, output: object) -> None:
    """A model that lets one image see another cannot carry two networks in one batch."""
    with torch.no_grad():
        alone = tree_leaves(model(images))
    beside = [
        leaf.chunk(2)[0] if isinstance(leaf, Tensor) else leaf for leaf in tree_leaves(output)
    ]
    for one, other in zip(alone, beside, strict=False):
        if isinstance(one, Tensor) and one.is_floating_point() and one.shape == other.shape:
            if (one - other).norm() <= 0.01 * one.norm():
                continue
            raise DataError(
                f"{type(model).__name__}: its output for an image must not depend on the other "
                "images of the batch, and does. Use --fit outputs."
            )
