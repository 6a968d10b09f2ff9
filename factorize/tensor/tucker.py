"""Tucker decomposition over the first two modes (Tucker-2), by orthogonal iteration."""

from __future__ import annotations

import torch
from torch import Tensor

from factorize.tensor.svd import leading_subspace


def tucker2(
    tensor: Tensor, ranks: tuple[int, int], *, tolerance: float = 1e-4, max_sweeps: int = 50
) -> tuple[Tensor, Tensor, Tensor]:
    """Higher-order orthogonal iteration (HOOI) over modes 0 and 1, from an HOSVD start.

    Parameters
    ----------
    tensor
        (O, I, K), float64.
    ranks
        (R_out, R_in), at most (O, I).
    tolerance
        Stop when a sweep adds less than this share of the tensor's energy to the core.

    Returns
    -------
    core : (R_out, R_in, K)
    left : (O, R_out), orthonormal columns
    right : (I, R_in), orthonormal columns

    References
    ----------
    De Lathauwer, De Moor, Vandewalle, "On the best rank-1 and rank-(R1,...,RN) approximation of
    higher-order tensors", SIAM J. Matrix Anal. Appl. 21 (2000), algorithm 4.2.
    """
    out_rank, in_rank = ranks
    by_input = tensor.transpose(0, 1).flatten(1)  # (I, O*K)
    right = _basis(by_input, in_rank)
    total, captured = float(tensor.square().sum()), 0.0
    left = core = tensor
    for _ in range(max_sweeps):
        reduced = torch.einsum("oik,ip->opk", tensor, right)  # (O, R_in, K)
        left = _basis(reduced.flatten(1), out_rank)
        reduced = torch.einsum("oik,oq->iqk", tensor, left)  # (I, R_out, K)
        right = _basis(reduced.flatten(1), in_rank)
        core = torch.einsum("iqk,ip->qpk", reduced, right)
        energy = float(core.square().sum())
        if energy - captured <= tolerance * total:
            break
        captured = energy
    return core, left, right


def _basis(matrix: Tensor, rank: int) -> Tensor:
    """Orthonormal columns (n, R) for the rows' space; at full rank any basis will do."""
    if rank == len(matrix):
        return torch.eye(rank, dtype=matrix.dtype)
    return leading_subspace(matrix, rank)
