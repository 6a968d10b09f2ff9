"""Images changed until a model's batch norms take them for those that it was trained on.

By gradient descent on the pixels: each batch norm is to see the mean and variance that it holds,
and outputs are to be as sure of one class, and as even over the classes, as those for real images
(DeepInversion: Yin 2020, arXiv 1912.08795; ZeroQ: Cai 2020, arXiv 2001.00281).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from factorize.calibrate.selection import trained_norms
from factorize.tensor.call import call, evaluating, to_model
from factorize.tensor.output_kinds import kind_of

STEPS = 50
_BATCH = 250  # images whose statistics are those of the batch norms
_RATE = 0.2  # of Adam at the beginning, in units of the model's input; it falls to 0
_LEAST = 1e-8  # variance


def inverted(model: nn.Module, images: Tensor, kind: str) -> Tensor:
    """Images (N, C, ...) as the model takes them, `STEPS` steps on.

    Parameters
    ----------
    kind
        Of the outputs, see `Outputs`.
    """
    norms, flags = trained_norms(model), [(p, p.requires_grad) for p in model.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        with evaluating(model), torch.enable_grad():
            return torch.cat([_descended(model, norms, p, kind) for p in images.split(_BATCH)])
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _descended(model: nn.Module, norms: list[Any], images: Tensor, kind: str) -> Tensor:
    """One batch after all of its steps."""
    pixels = to_model(images, model).detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([pixels], lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    distances: list[Tensor] = []
    hooks = [
        norm.register_forward_pre_hook(lambda norm, x: distances.append(_distance(norm, x[0])))
        for norm in norms
    ]
    try:
        for _ in range(STEPS):
            distances.clear()
            optimizer.zero_grad()
            output = call(model, pixels)
            loss = torch.stack(distances).sum()
            single = isinstance(output, Tensor) and output.ndim == 2
            if single and kind_of(output, kind) == "logits":
                loss = loss + _unsure(output)
            loss.backward()
            optimizer.step()
            schedule.step()
    finally:
        for hook in hooks:
            hook.remove()
    return pixels.detach().to(images.device, images.dtype)


def _distance(norm: Any, x: Tensor) -> Tensor:
    """Of the statistics of x (N, C, ...) from those that a batch norm holds.

    Squared, of means in units of its deviation and of logarithms of variances, over the channels.
    """
    x = x.float() if x.dtype.itemsize < 4 else x
    var, mean = torch.var_mean(x.transpose(0, 1).flatten(1), dim=1, correction=0)
    held = norm.running_var.clamp_min(_LEAST)
    shift = (mean - norm.running_mean).square() / held
    return (shift + (var.clamp_min(_LEAST) / held).log().square()).mean()


def _unsure(logits: Tensor) -> Tensor:
    """Entropy of the classes (N, K) of an image, less that of their average over the images."""
    shares = (logits.float() if logits.dtype.itemsize < 4 else logits).softmax(1)
    return _entropy(shares).mean() - _entropy(shares.mean(0))


def _entropy(shares: Tensor) -> Tensor:
    return -(shares * shares.clamp_min(1e-12).log()).sum(-1)
