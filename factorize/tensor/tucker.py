"""Tucker decomposition over the first two modes (Tucker-2), by orthogonal iteration."""

from __future__ import annotations

import torch
from torch import Tensor

RESOLVED = 1e-3
"""Of the squared error: above it the rounding of float32 subspaces is of no account."""

PANEL = 128  # columns of a Gram matrix that one product makes


def tucker2(
    tensor: Tensor, ranks: tuple[int, int], *, tolerance: float = 7e-4, max_sweeps: int = 50
) -> tuple[Tensor, Tensor, Tensor]:
    """Higher-order orthogonal iteration (HOOI) over modes 0 and 1, from an HOSVD start.

    Computed in float32, whose rounding counts by its square only. Where the squared error is below
    `RESOLVED`, sweeps in float64 follow: one is enough where the tensor has these ranks.

    Parameters
    ----------
    tensor
        (O, I, K), float64.
    ranks
        (R_out, R_in), at most (O, I).
    tolerance
        Stop when a sweep lowers the squared error by less than this share of it.

    Returns
    -------
    core : (R_out, R_in, K)
    left : (O, R_out), orthonormal columns
    right : (I, R_in), orthonormal columns

    References
    ----------
    De Lathauwer, De Moor, Vandewalle, "On the best rank-1 and rank-(R1,...,RN) approximation of
    higher-order tensors", SIAM J. Matrix Anal. Appl. 21 (2000), algorithm 4.2.
    Nesterov, "A method for solving the convex programming problem with convergence rate O(1/k^2)",
    Dokl. Akad. Nauk SSSR 269 (1983), for the momentum.
    """
    scale = float(tensor.norm()) or 1.0  # squares of any kernel's values fit into float32 then
    exact = tensor / scale
    used = exact.float()
    left, right, energy = _iterate(used, ranks, tolerance, max_sweeps)
    if 1 - energy < RESOLVED:
        used = exact
        left, right, _ = _iterate(used, ranks, tolerance, max_sweeps, left.double(), energy)
    left, right = (torch.linalg.qr(basis.double())[0] for basis in (left, right))
    rows = left.T.to(used.dtype) @ used.transpose(1, 2).flatten(1)  # (R_out, K I)
    core = rows.reshape(ranks[0], -1, len(right)) @ right.to(used.dtype)
    return core.transpose(1, 2).double() * scale, left, right


def _iterate(
    tensor: Tensor,
    ranks: tuple[int, int],
    tolerance: float,
    max_sweeps: int,
    left: Tensor | None = None,
    captured: float = 0.0,
) -> tuple[Tensor, Tensor, float]:
    """HOOI sweeps, from a left basis if given: both bases, and the energy in the core.

    A Gram matrix is linear in the projector that it is made with, so that Nesterov's momentum of
    the projectors is that of the Gram matrices. It begins anew when a sweep loses energy by it.
    """
    by_output = tensor.transpose(1, 2).contiguous()  # (O, K, I)
    by_input = tensor.permute(1, 2, 0).contiguous()  # (I, K, O)
    rounding = 10 * torch.finfo(tensor.dtype).eps
    best: list[Tensor] = []
    ahead: list[Tensor] = []  # the Gram matrices, with the momentum of so many sweeps
    sweeps = 0
    for _ in range(max_sweeps):
        momentum = sweeps / (sweeps + 2)
        of_right = _gram(by_output, left)
        if ahead:
            of_right = of_right + momentum * (of_right - ahead[0])
        right = _leading(of_right, ranks[1])
        plain = of_left = _gram(by_input, right)
        if ahead:
            of_left = of_left + momentum * (of_left - ahead[1])
        left = _leading(of_left, ranks[0])
        energy = float((left * (plain @ left)).sum())
        gain = energy - captured
        if gain < 0 and ahead:
            left, ahead, sweeps = best[0], [], 0
            continue
        best, captured = [left, right, plain], energy
        ahead, sweeps = [of_right, of_left], sweeps + 1
        if gain <= tolerance * (1 - energy) + rounding:
            break
    _, right, plain = best
    return _leading(plain, ranks[0]), right, captured


def _gram(unfolded: Tensor, basis: Tensor | None) -> Tensor:
    """The Gram matrix (n, n) of (m, K, n), its first mode projected on a basis (m, R) if given.

    It is symmetric: only one half is multiplied out.
    """
    size = unfolded.shape[2]
    rows = unfolded.flatten(1) if basis is None else basis.T @ unfolded.flatten(1)
    rows = rows.reshape(-1, size)
    gram = rows.new_empty(size, size)
    for start in range(0, size, PANEL):
        stop = min(start + PANEL, size)
        gram[start:stop, :stop] = rows[:, start:stop].T @ rows[:, :stop]
        gram[:start, start:stop] = gram[start:stop, :start].T
    return gram


def _leading(gram: Tensor, rank: int) -> Tensor:
    """Its leading eigenvectors (n, R); at full rank any basis will do."""
    if rank == len(gram):
        return torch.eye(rank, dtype=gram.dtype)
    return torch.linalg.eigh(gram)[1][:, -rank:]
