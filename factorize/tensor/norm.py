"""The norm that a kernel is fitted in."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Norm:
    """The identity norm (Frobenius): every input of the layer counts alike.

    This is what can be known without data. It is the output error E|(W - W')p|^2 of the layer for
    patches p that are white, E[p p^T] = 1.
    """

    def relative_error(self, weight: Tensor, approximation: Tensor) -> float:
        """``||W - W'|| / ||W||``; of a weight that is all zero, ``||W'||``.

        Parameters
        ----------
        weight, approximation
            (O, I, *kernel), float64.
        """
        scale = float(weight.norm()) or 1.0
        return float((weight - approximation).norm()) / scale
