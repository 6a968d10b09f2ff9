"""Truncated singular value decomposition, one matrix or a batch."""

from __future__ import annotations

import torch
from torch import Tensor

LARGE, TALL = 1024, 4
"""A matrix's smaller side, and sides' ratio: from either on the faster Gram matrix is used."""


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
        ``left @ right`` is the nearest matrix of rank R (Eckart & Young 1936); of a `LARGE` or
        `TALL` one it is as near but for 1e-8 of the largest singular value.
    """
    if matrix.shape[-2] < matrix.shape[-1]:  # LAPACK takes up to five times as long for wide ones
        left, right = split(matrix.mT, rank)
        return right.mT, left.mT
    if _by_gram(matrix):
        right = leading_subspace(matrix.mT, rank)  # orthonormal: at full rank the product is exact
        left = matrix @ right
        root = left.norm(dim=-2, keepdim=True).sqrt()
        return left / root.clamp_min(1e-150), root.mT * right.mT
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    root = s[..., :rank].sqrt()
    return u[..., :rank] * root.unsqueeze(-2), root.unsqueeze(-1) * vh[..., :rank, :]


def singular_values(matrix: Tensor) -> Tensor:
    """All singular values, descending, of (..., m, n): (..., min(m, n)).

    Of a `LARGE` or `TALL` matrix those below 1e-8 of the largest one are not resolved.
    """
    if matrix.shape[-2] < matrix.shape[-1]:
        matrix = matrix.mT
    if _by_gram(matrix):
        return torch.linalg.eigvalsh(matrix.mT @ matrix).flip(-1).clamp_min(0).sqrt()
    return torch.linalg.svdvals(matrix)


def leading_subspace(matrix: Tensor, rank: int) -> Tensor:
    """The R leading left singular vectors, by the eigenvectors of the Gram matrix.

    Cheaper than an SVD where the matrix is wide. Directions with singular values below about
    1e-8 of the largest are not resolved, and those carry no energy in float64.

    Parameters
    ----------
    matrix
        (..., m, n), float64.
    rank
        R in 1..m.

    Returns
    -------
    (..., m, R) orthonormal columns, the strongest first.
    """
    _, vectors = torch.linalg.eigh(matrix @ matrix.mT)
    return vectors[..., -rank:].flip(-1)


def _by_gram(matrix: Tensor) -> bool:
    """Of a matrix at least as high as wide."""
    rows, columns = matrix.shape[-2:]
    return columns >= LARGE or rows >= TALL * columns
