"""Batch-norm statistics for the factorized layers: what they normalise is no longer what it was.

Running means and variances are estimated anew on a thousand training images, without labels or
gradients, and kept only where that brings the held-out outputs closer to the original's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from factorize.tensor.call import batch_size, call, evaluating, to_model
from factorize.tensor.reference import KEPT, Reference
from factorize.tune.distance import holdout_scores, placed
from factorize.tune.order import ordered
from factorize.types import Data, Progress

IMAGES = 1000


@dataclass(frozen=True)
class Recalibration:
    """What came of it.

    Attributes
    ----------
    before, after
        On the held-out images: distance of the outputs to the original's (KL divergence of
        logits, else relative squared difference); lower is better. None without layers.
    layers
        Batch-norm layers estimated anew.
    reason
        Why it was applied, or why not.
    """

    applied: bool
    before: float | None
    after: float | None
    layers: int
    reason: str


class _Moments:
    """Mean and variance per channel over everything that passes one layer."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.scatter: Tensor | float = 0.0  # sum of squared differences to the mean

    def add(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Merge one batch (N, C, ...): counts weigh, so that a smaller last batch counts less."""
        x = inputs[0].detach().transpose(0, 1).flatten(1)  # (C, N * positions)
        var, mean = torch.var_mean(x.float(), dim=1, correction=0)
        var, mean, n = var.double(), mean.double(), x.shape[1]
        gap, total = mean - self.mean, self.count + n
        self.mean = self.mean + gap * (n / total)
        self.scatter = self.scatter + var * n + gap.square() * (self.count * n / total)
        self.count = total


def recalibrate(
    model: nn.Module,
    original: nn.Module,
    data: Data,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Recalibration:
    """Re-estimate batch-norm running statistics in place, and keep them if they are better.

    Each layer normalises by its own batch while its statistics are gathered over up to about
    1,000 images of ``data.train``; everything else, dropout included, is in eval mode.

    Parameters
    ----------
    original
        What the held-out outputs are compared with.
    device
        Where to compute; both models return to where they were.
    progress
        Called as ``progress(step, images done, images in all, {})``.

    Raises
    ------
    IncomparableError
        If the outputs cannot be compared.
    DataError
        If there is no held-out image.
    """
    layers = _norms(model)
    if not layers:
        reason = "the model has no batch-norm layer with running statistics"
        return Recalibration(False, None, None, 0, reason)
    with placed(device, model, original):
        reference = Reference(original, device, KEPT)
        before = _judged(model, reference, data)
        saved = _saved(layers)
        kept = False
        try:
            seen = _estimate(model, layers, saved, data, progress)
            after = _judged(model, reference, data)
            kept = _is_better(after, before)
        finally:
            if not kept:
                for layer, buffers in zip(layers, saved, strict=True):
                    _restore(layer, buffers)
    verdict = "better" if kept else "not better, statistics left as they were"
    (was, score_was), (now, score_now) = before, after
    moved = f"held-out distance to the original {was:.4g} -> {now:.4g}"
    if data.outputs.score is not None:
        sign = data.outputs.sign
        moved += f", {data.outputs.score_name} {sign * score_was:.4g} -> {sign * score_now:.4g}"
    reason = f"{moved} on {seen} images: {verdict}"
    return Recalibration(kept, was, now, len(layers), reason)


def renormalised_(
    model: nn.Module, data: Data, *, device: str = "cpu", progress: Progress | None = None
) -> nn.Module:
    """Give batch norms the statistics of ``data.train``, in place; returns the model.

    What leaves a batch norm has then the mean and variance, channel by channel, that the images
    have which the model was trained on, though these images are others.
    """
    if layers := _norms(model):
        with placed(device, model):
            _estimate(model, layers, _saved(layers), data, progress)
    return model


def _norms(model: nn.Module) -> list[_BatchNorm]:
    """Those with running statistics."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


def _saved(layers: list[_BatchNorm]) -> list[dict[str, Tensor]]:
    return [{k: v.clone() for k, v in layer.named_buffers()} for layer in layers]


def _judged(model: nn.Module, reference: Reference, data: Data) -> tuple[float, float]:
    """The distance from the original's held-out outputs, and the user's own score or 0."""
    distance, score = holdout_scores(model, reference, data)
    return distance, 0.0 if data.outputs.score is None or score is None else score


def _is_better(after: tuple[float, float], before: tuple[float, float]) -> bool:
    """By the distance, and not worse by the score.

    By a score alone images that the original was trained on would choose what fits them better
    than it does, which is no gain of the factorization.
    """
    closer = math.isfinite(after[0]) and not after[0] >= before[0]  # a nan before loses
    return closer and not after[1] < before[1]


def _estimate(
    model: nn.Module,
    layers: list[_BatchNorm],
    saved: list[dict[str, Tensor]],
    data: Data,
    progress: Progress | None,
) -> int:
    """Set each layer's statistics to those of its input; return the number of images."""
    moments = [_Moments() for _ in layers]
    hooks = [
        layer.register_forward_pre_hook(into.add)
        for layer, into in zip(layers, moments, strict=True)
    ]
    seen, device = 0, next(model.buffers()).device
    try:
        with (
            evaluating(model),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            ordered(data.train, seed=0),
        ):
            torch.manual_seed(0)  # what else a loader draws: augmentation, an order of its own
            for layer in layers:
                layer.train()
            for batch in data.train:
                call(model, to_model(batch[0], model))
                seen += batch_size(batch[0])
                if progress:
                    progress("recalibrating", min(seen, IMAGES), IMAGES, {})
                if seen >= IMAGES:
                    break
    finally:
        for hook in hooks:
            hook.remove()
    for layer, into, buffers in zip(layers, moments, saved, strict=True):
        _restore(layer, buffers)  # the count of batches too, which train mode has moved
        if into.count > 1:
            assert layer.running_mean is not None
            assert layer.running_var is not None
            assert isinstance(into.mean, Tensor)
            assert isinstance(into.scatter, Tensor)
            layer.running_mean.copy_(into.mean)
            layer.running_var.copy_(into.scatter / (into.count - 1))
    return seen


def _restore(layer: _BatchNorm, buffers: dict[str, Tensor]) -> None:
    for name, buffer in layer.named_buffers():
        buffer.copy_(buffers[name])
