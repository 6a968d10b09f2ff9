"""Truncated singular value decomposition, one matrix or a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def split(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Best rank-R factors of a matrix, the singular values shared evenly by both.

    Parameters
    ----------
    matrix
        (..., m, n), float64.
    rank
        R in 1..min(m, n).

    Returns
    -------
    left : (..., m, R)
    right : (..., R, n)
        ``left @ right`` is the nearest matrix of rank R (Eckart & Young 1936).
    """
    if matrix.shape[-2] < matrix.shape[-1]:  # LAPACK takes up to five times as long for wide ones
        left, right = split(matrix.mT, rank)
        return right.mT, left.mT
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    root = s[..., :rank].sqrt()
    return u[..., :rank] * root.unsqueeze(-2), root.unsqueeze(-1) * vh[..., :rank, :]


def singular_values(matrix: Tensor) -> Tensor:
    """All singular values, descending, of (..., m, n): (..., min(m, n))."""
    return torch.linalg.svdvals(matrix.mT if matrix.shape[-2] < matrix.shape[-1] else matrix)


def leading_subspace(matrix: Tensor, rank: int) -> Tensor:
    """The R leading left singular vectors, by the eigenvectors of the Gram matrix.

    Cheaper than an SVD where the matrix is wide. Directions with singular values below about
    1e-8 of the largest are not resolved, and those carry no energy in float64.

    Parameters
    ----------
    matrix
        (m, n), float64.
    rank
        R in 1..m.

    Returns
    -------
    (m, R) orthonormal columns, the strongest first.
    """
    _, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return vectors[:, -rank:].flip(1)
