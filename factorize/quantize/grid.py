"""The grids that numbers are rounded to: unsigned 8-bit activations, signed 8-bit weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_STEPS = 255
_SHARES = tuple(1 - i / 40 for i in range(28))  # of the range, down to 0.325
_MOST_VALUES = 2**20
_SMALLEST = 2.0**-60  # a step; its product with a weight's is a normal float32 number


@dataclass(frozen=True)
class Grid:
    """Values ``scale * (code - zero)`` for codes 0 to 255.

    Attributes
    ----------
    scale
        A float32 number.
    zero
        The code of 0, which is a value of every grid: padding is exact.
    """

    scale: float
    zero: int

    def rounded(self, x: Tensor) -> Tensor:
        """The nearest values; ties go to the even code, as in ONNX's QuantizeLinear."""
        return self.codes(x).sub_(self.zero).mul_(self.scale)

    def codes(self, x: Tensor) -> Tensor:
        """Their codes."""
        return (x / self.scale).round_().add_(self.zero).clamp_(0, _STEPS)


def grid_of(values: Sequence[Tensor]) -> Grid:
    """The grid on which the squared error of some values is least.

    From their minimum to their maximum, or a share of that: a few large values may be clipped
    where all others gain more.
    """
    low = min(float(v.min()) for v in values)
    high = max(float(v.max()) for v in values)
    low, high = min(low, 0.0), max(high, 0.0)
    count = sum(v.numel() for v in values)
    every = max(count // _MOST_VALUES, 1)
    some = torch.cat([v.reshape(-1)[::every] for v in values])
    grids = [_between(share * low, share * high) for share in _SHARES]
    errors = [float((grid.rounded(some) - some).square_().mean()) for grid in grids]
    return grids[errors.index(min(errors))]


def _between(low: float, high: float) -> Grid:
    scale = float(torch.tensor(max((high - low) / _STEPS, _SMALLEST), dtype=torch.float32))
    return Grid(scale, round(-low / scale))
