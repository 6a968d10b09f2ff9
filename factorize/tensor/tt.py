"""Tensor-train decomposition."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from factorize.spec import Rank


def tensor_train(tensor: Tensor, ranks: Rank) -> tuple[Tensor, ...]:
    """TT-SVD: one truncated SVD after the other, from the first mode to the last.

    Parameters
    ----------
    tensor
        (n_1, ..., n_d), float64.
    ranks
        (R_1, ..., R_{d-1}); beyond that of an unfolding, filled up with zeros.

    Returns
    -------
    Cores (n_1, R_1), (R_1, n_2, R_2), ..., (R_{d-1}, n_d). The squared error is at most the sum of
    those of the best approximations of the unfoldings, each of its own rank.

    References
    ----------
    Oseledets, "Tensor-train decomposition", SIAM J. Sci. Comput. 33 (2011), algorithm 1.
    """
    cores, rest = [], tensor
    before: tuple[int, ...] = ()
    for mode, rank in enumerate(ranks):
        matrix = rest.reshape(*before, tensor.shape[mode], -1)
        matrix = matrix.flatten(0, -2)  # (R n, rest)
        u, values, vh = torch.linalg.svd(matrix, full_matrices=False)
        kept = min(rank, len(values))
        left = pad(u[:, :kept], (0, rank - kept))
        rest = pad(values[:kept, None] * vh[:kept], (0, 0, 0, rank - kept))
        cores.append(left.reshape(*before, tensor.shape[mode], rank))
        before = (rank,)
    return (*cores, rest)


def unfoldings(tensor: Tensor) -> list[Tensor]:
    """The tensor as matrices, cut after the first mode, the second, ..., the last but one."""
    return [tensor.flatten(mode).flatten(0, -2) for mode in range(1, tensor.ndim)]
