"""Tucker decomposition over the first two modes (Tucker-2), by orthogonal iteration."""

from __future__ import annotations

import torch
from torch import Tensor


def tucker2(
    tensor: Tensor, ranks: tuple[int, int], *, tolerance: float = 3e-4, max_sweeps: int = 50
) -> tuple[Tensor, Tensor, Tensor]:
    """Higher-order orthogonal iteration (HOOI) over modes 0 and 1, from an HOSVD start.

    Sweeps in float32, which are twice as fast, lead to the subspaces; sweeps in float64 finish
    them: one is enough where the tensor has these ranks. A sweep starts as far beyond its
    predecessor's subspace as that one moved, unless the last such step lost energy.

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
    scale = float(tensor.norm()) or 1.0  # squares of any kernel's values fit into float32 then
    exact = (tensor / scale).permute(2, 0, 1).contiguous()  # (K, O, I)
    left = right = previous = _basis(exact.float().flatten(0, 1), ranks[1])[0]
    captured = 0.0
    for slices in (exact.float(), exact):
        turned = slices.transpose(1, 2).contiguous()  # (K, I, O)
        right, previous = right.to(slices.dtype), previous.to(slices.dtype)
        for _ in range(max_sweeps):
            point = right
            if previous is not right:
                point = torch.linalg.qr(2 * right - previous @ (previous.T @ right))[0]
            new_left, _ = _basis((point.T @ turned).flatten(0, 1), ranks[0])  # from (K R_in, O)
            new_right, energy = _basis((new_left.T @ slices).flatten(0, 1), ranks[1])
            gain = energy - captured
            if gain < 0 and point is not right:
                previous = right
                continue
            left, previous, right, captured = new_left, right, new_right, energy
            if gain <= tolerance:
                break
    core = left.T @ exact @ right * scale  # (K, R_out, R_in)
    return core.permute(1, 2, 0), left, right


def _basis(rows: Tensor, rank: int) -> tuple[Tensor, float]:
    """Leading right singular vectors (n, R) of (m, n), and the energy along them.

    By the eigenvectors of the Gram matrix; at full rank any basis will do.
    """
    gram = rows.T @ rows
    if rank == len(gram):
        return torch.eye(rank, dtype=gram.dtype), float(gram.trace())
    values, vectors = torch.linalg.eigh(gram)
    return vectors[:, -rank:], float(values[-rank:].sum())
