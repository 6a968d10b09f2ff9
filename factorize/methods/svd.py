"""What the methods share that are one truncated SVD of a reshaped kernel."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from factorize.methods.base import Method
from factorize.spec import Rank
from factorize.tensor.ranks import discarded_share, energy_rank, vbmf_rank
from factorize.tensor.svd import singular_values, split


class SvdMethod(Method):
    """A method whose best factors are the truncated SVD of `matrix`: the error is its tail."""

    closed = True

    @abstractmethod
    def matrix(self, weight: Tensor, variant: str) -> Tensor:
        """The kernel (O, I, *kernel) as a matrix (m, n), or a batch of them (b, m, n)."""

    @abstractmethod
    def fold(
        self, left: Tensor, right: Tensor, weight: Tensor, variant: str
    ) -> tuple[Tensor, Tensor]:
        """Stage weights, first to last, of ``left @ right`` = (.., m, R) @ (.., R, n)."""

    def decompose(
        self, weight: Tensor, rank: Rank, variant: str, *, seed: int
    ) -> tuple[Tensor, ...]:
        """Truncated SVD; padded with zeros where a variant's matrix has a lower full rank."""
        del seed
        matrix = self.matrix(weight, variant)
        left, right = split(matrix, min(rank[0], *matrix.shape[-2:]))
        missing = rank[0] - left.shape[-1]
        if missing > 0:
            left = torch.nn.functional.pad(left, (0, missing))
            right = torch.nn.functional.pad(right, (0, 0, 0, missing))
        return self.fold(left, right, weight, variant)

    def predicted_error(self, weight: Tensor, rank: Rank, variant: str) -> float | None:
        """Root of the discarded squared singular values, relative to all."""
        return discarded_share(self._singular_values(weight, variant), rank[0])

    def rank_for_energy(
        self, weight: Tensor, energy: float, variant: str, *, most: Rank, seed: int
    ) -> Rank:
        """The first rank whose squared singular values sum to the share."""
        del most, seed
        return (energy_rank(self._singular_values(weight, variant), energy),)

    def rank_by_vbmf(self, weight: Tensor, variant: str) -> Rank:
        """VBMF of the matrix; of a batch, the largest rank among its matrices."""
        matrix = self.matrix(weight, variant)
        rows, columns = matrix.shape[-2:]
        values = self._singular_values(weight, variant).reshape(-1, min(rows, columns))
        return (max(vbmf_rank(row, rows, columns) for row in values),)

    def _singular_values(self, weight: Tensor, variant: str) -> Tensor:
        return singular_values(self.matrix(weight, variant))
