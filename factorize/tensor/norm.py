"""The norm that a kernel is fitted in."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor


@dataclass(frozen=True)
class Norm:
    """``||A||^2 = tr(A S A^T)``, for a kernel A the mean square of its output, if E[pp^T] = S.

    Attributes
    ----------
    second
        ``()``: the identity (Frobenius), as every input counts alike where there is no data.
        ``(S,)``: (D, D), for rows of the weight, (I, *kernel) flattened.
        ``(C, P)``: (I, I) and (K, K), S = C (x) P.
    """

    second: tuple[Tensor, ...] = ()

    def times(self, rows: Tensor) -> Tensor:
        """``A S`` for A (n, D), any dtype and device that S is of."""
        if not self.second:
            return rows
        if len(self.second) == 1:
            return rows @ self.second[0]
        channels, positions = self.second
        return (channels @ rows.reshape(len(rows), len(channels), -1) @ positions).flatten(1)

    def to(self, dtype: torch.dtype) -> Norm:
        """The norm with its matrices in another dtype."""
        return Norm(tuple(matrix.to(dtype) for matrix in self.second))

    def energy(self, kernel: Tensor) -> float:
        """``||A||^2`` of a kernel (O, I, *kernel)."""
        if not self.second:
            return float(torch.linalg.vector_norm(kernel)) ** 2
        rows = kernel.flatten(1)
        return max(float((self.times(rows) * rows).sum()), 0.0)

    def relative_error(self, weight: Tensor, approximation: Tensor) -> float:
        """``||W - W'|| / ||W||``; of a weight that is zero to this norm, ``||W'||``.

        Parameters
        ----------
        weight, approximation
            (O, I, *kernel), float64.
        """
        scale = self.energy(weight) or 1.0
        return sqrt(self.energy(weight - approximation) / scale)
