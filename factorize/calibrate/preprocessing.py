"""The range of a model's input, from what its first batch norm remembers."""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from factorize.tensor.call import call, evaluating, to_model
from factorize.types import Preprocessing

_STEPS = 300
_STARTS = 1.0, 4.0, 255.0  # of the scale: images in 0..1, normalised ones, and in 0..255
_LEAST = 1e-12  # variance


def input_range(model: nn.Module, images: Tensor) -> Preprocessing | None:
    """The mean and std of each channel by which images are to be normalised, or None.

    A batch norm behind the first convolution holds the mean and variance of each of its channels
    on the images that the net was trained on. Those of other images, normalised by an affine map
    for each input channel, are quadratic in it: the map under which they fit best is found.

    Parameters
    ----------
    images
        (N, C, ...) in 0..1.

    Returns
    -------
    Preprocessing | None
        None where the model has no batch norm directly behind its first convolution, or none that
        was ever trained.
    """
    found = _first(model, images)
    if found is None:
        return None
    conv, norm = found
    means, covariances = _responses(conv, images)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    wanted_mean, wanted_var = norm.running_mean.double().cpu(), norm.running_var.double().cpu()
    if conv.bias is not None:
        wanted_mean = wanted_mean - conv.bias.detach().double().cpu()
    fits = [_fit(start, means, covariances, wanted_mean, wanted_var) for start in _STARTS]
    _, scale, offset = min(fits, key=lambda fit: fit[0])
    return Preprocessing(tuple((-offset / scale).tolist()), tuple((1 / scale).tolist()))


def _fit(
    start: float, means: Tensor, covariances: Tensor, wanted_mean: Tensor, wanted_var: Tensor
) -> tuple[float, Tensor, Tensor]:
    """Least squares of means and log variances over the channels of the batch norm.

    Returns
    -------
    The loss, and by channel (C,) the scale and the offset of x' = scale x + offset.
    """
    deviation = wanted_var.clamp_min(_LEAST).sqrt()
    log_scale = torch.full((means.shape[1] // 2,), log(start), dtype=torch.float64)
    parameters = [log_scale.requires_grad_(), torch.zeros_like(log_scale).requires_grad_()]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=_STEPS, line_search_fn="strong_wolfe", tolerance_change=1e-12
    )

    def distance() -> Tensor:
        both = torch.cat([parameters[0].exp(), parameters[1]])
        var = torch.einsum("ocd,c,d->o", covariances, both, both).clamp_min(_LEAST)
        ratio = (var / wanted_var.clamp_min(_LEAST)).log()
        return ((means @ both - wanted_mean) / deviation).square().mean() + ratio.square().mean()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = distance()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    scale, offset = (one.detach() for one in parameters)
    return float(distance().detach()), scale.exp(), offset


def _first(model: nn.Module, images: Tensor) -> tuple[_ConvNd, _BatchNorm] | None:
    """The first convolution that is called and, where its output goes there, the batch norm."""
    seen: list[tuple[_ConvNd, Tensor]] = []
    behind: list[_BatchNorm] = []

    def conv_called(module: Any, _: Any, output: Tensor) -> None:
        if not seen:
            seen.append((module, output))

    def norm_called(module: Any, given: tuple[Tensor, ...]) -> None:
        if len(seen) == 1 and not behind and given[0] is seen[0][1]:
            behind.append(module)

    hooks = [
        module.register_forward_hook(conv_called)
        if isinstance(module, _ConvNd)
        else module.register_forward_pre_hook(norm_called)
        for module in model.modules()
        if isinstance(module, (_ConvNd, _BatchNorm))
    ]
    try:
        with evaluating(model):
            call(model, to_model(images[:2], model))
    except Exception:  # whoever runs it next tells in which way images and model differ
        return None
    finally:
        for hook in hooks:
            hook.remove()
    if not behind or behind[0].running_var is None or behind[0].running_mean is None:
        return None
    conv, norm = seen[0][0], behind[0]
    untouched = bool((norm.running_var == 1).all()) and bool((norm.running_mean == 0).all())
    fits = conv.groups == 1 and conv.in_channels == images.shape[1] and not conv.transposed
    return None if untouched or not fits else (conv, norm)


def _responses(conv: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """What comes of each input channel by itself, of the images and then of ones in their place.

    With the zeros of the padding around both, as the net sees them.

    Returns
    -------
    (O, 2 C) means over images and positions, (O, 2 C, 2 C) covariances.
    """
    weight = conv.weight.detach().double().cpu()
    parts = torch.stack(
        [
            conv._conv_forward(x[:, c : c + 1], weight[:, c : c + 1], None).movedim(1, 0).flatten(1)
            for x in (images.double(), torch.ones_like(images).double())
            for c in range(images.shape[1])
        ]
    )  # (2 C, O, positions)
    centred = parts - parts.mean(2, keepdim=True)
    covariances = torch.einsum("cop,dop->ocd", centred, centred) / parts.shape[2]
    return parts.mean(2).T, covariances
