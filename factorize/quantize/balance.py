"""Scales moved between two layers that nothing but numbers lies between; the net stays the same.

Between the stages of a chain there is no nonlinearity: channel r of the value between them may be
divided by any s_r, and multiplied again by the next stage. One step size serves all channels of
that value, so the s_r decide what is lost to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_CODES, _LARGEST = 255, 127


def balance_(first: nn.Module, second: nn.Module, between: list[Tensor]) -> Tensor | None:
    """Divide the first layer's outputs by s and multiply the second's weights by it, in place.

    Of several s, from none to equal ranges of all channels, the one that loses least to rounding
    both the value and the second layer's weights (Xiao et al., SmoothQuant, ICML 2023, balance the
    two alike).

    Parameters
    ----------
    between
        The value between them, (N, R, ...) or (..., R) of linear layers; divided too.

    Returns
    -------
    s (R,), or None where the two do not fit together.
    """
    conv, again = (isinstance(one, nn.modules.conv._ConvNd) for one in (first, second))
    if conv != again:  # their channels are on different axes
        return None
    axis = 1 if conv else -1
    channels, weight = between[0].shape[axis], second.weight
    assert isinstance(weight, Tensor)
    groups = getattr(second, "groups", 1)
    if weight.shape[1] * groups != channels or first.weight.shape[0] != channels:  # type: ignore[union-attr]
        return None
    rows = [v.movedim(axis, 0).flatten(1) for v in between]
    ranges = torch.stack([v.abs().amax(1) for v in rows]).amax(0).double()
    power = torch.stack([v.double().square().mean(1) for v in rows]).mean(0)
    if not bool((ranges > 0).any()):
        return None
    own = weight.detach().double().view(groups, -1, weight.shape[1], weight[0, 0].numel())
    columns = own.abs().amax((1, 3)).flatten()  # (R,), the largest weight that reads each
    floor = ranges.max() * 2.0**-20
    ranges = ranges.clamp_min(floor)
    columns = columns.clamp_min(columns.max() * 2.0**-20 + torch.finfo(torch.float32).tiny)
    best: tuple[float, Tensor] | None = None
    for share in _SHARES:
        scales = ranges**share / columns ** (1 - share)
        loss = _loss(own, scales, ranges, power)
        if best is None or loss < best[0]:
            best = (loss, scales)
    assert best is not None
    scales = best[1] / best[1].log().mean().exp()
    narrow = scales.to(weight.dtype)
    with torch.no_grad():
        first.weight.div_(narrow.view(-1, *(1,) * (first.weight.ndim - 1)))  # type: ignore[union-attr,operator]
        if first.bias is not None:
            first.bias.div_(narrow)  # type: ignore[operator]
        per_group = narrow.view(groups, 1, -1, *(1,) * (weight.ndim - 2))
        weight.view(groups, -1, *weight.shape[1:]).mul_(per_group)
        shape = [1] * between[0].ndim
        shape[axis] = -1
        for value in between:
            value.div_(narrow.view(shape))
    return scales


def _loss(weight: Tensor, scales: Tensor, ranges: Tensor, power: Tensor) -> float:
    """Squared error of the second layer's outputs, if all that is rounded were independent.

    Parameters
    ----------
    weight
        (G, O, R / G, K).
    """
    by_group = scales.view(len(weight), 1, -1, 1)
    scaled = weight * by_group
    step = 2 * (ranges / scales).max() / _CODES
    of_value = step**2 * scaled.square().sum()
    steps = scaled.abs().amax((2, 3)) / _LARGEST  # (G, O)
    powers = (power / scales**2).view(len(weight), -1).sum(1)  # (G,)
    of_weight = (steps.square().sum(1) * powers).sum() * weight.shape[-1]
    return float(of_value + of_weight)
