"""Canonical polyadic (CP) decomposition by alternating least squares (ALS)."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from factorize.tensor.cp_als import als as _als
from factorize.tensor.cp_als import balance, correct, intensity, residual
from factorize.tensor.effort import Effort, effort
from factorize.tensor.svd import leading_subspace

_HEAVY, _LIGHT = 1.0, 0.01  # shares of the squared error that the penalty has, first and last
_DEGENERATE = 10.0  # intensity over the squared norm; fits of trained kernels end at 1 to 7


def exact_rank(shape: tuple[int, ...]) -> int:
    """The rank at which a CP form is known without a search: all modes but the largest."""
    return prod(shape) // max(shape)


def cp(
    tensor: Tensor,
    rank: int,
    *,
    seed: int,
    starts: int = 2,
    tolerance: float = 3e-4,
    max_sweeps: int = 100,
) -> tuple[Tensor, ...]:
    """Factors A1 (n1, R), A2 (n2, R), ... with ``T[i, j, ..] ~ sum_r A1[i, r] A2[j, r] ..``.

    ALS runs on the HOSVD core, which is smaller where the rank is below the dimensions, in float32,
    which is nearly twice as fast, and is then finished in float64 on the tensor itself. Several
    seeded starts are raced for a few sweeps; the best goes on. A sweep's step is extrapolated as
    long as that pays (Ang et al. 2020). Components that cancel each other are penalised, heavily
    at first: fewer of the narrow valleys are entered in which plain ALS creeps and its components
    grow without bound. What is degenerate all the same is corrected at no higher an error. At
    `exact_rank` the answer is exact.

    Parameters
    ----------
    tensor
        (n1, n2, ...) of three or more modes, float64.
    rank
        R in 1..exact_rank(tensor.shape).
    seed
        Of the random starts; equal seeds give equal factors.
    tolerance
        Stop when the relative error falls by less than this share of itself in a sweep.

    Returns
    -------
    One factor per mode, the norm of each component shared evenly among its factors.

    References
    ----------
    Kolda & Bader, "Tensor decompositions and applications", SIAM Review 51 (2009), section 3.4.
    Ang, Cohen, Hien, Gillis, "Accelerating approximate nonnegative canonical polyadic
    decomposition using extrapolation", 2020 (arXiv 2001.04321), the restart rule.
    """
    if rank >= exact_rank(tuple(tensor.shape)):
        return balance(_exact(tensor, rank))
    if effort() < Effort.WHOLE:
        rough = effort() == Effort.ROUGH
        starts, tolerance, max_sweeps = 1, 1e-2 if rough else 1e-3, 8 if rough else 30
    scale = float(tensor.norm())
    if not scale:
        return tuple(torch.zeros(n, rank, dtype=tensor.dtype) for n in tensor.shape)
    tensor = tensor / scale  # squares of any kernel's values fit into float32 then

    bases = [leading_subspace(_unfold(tensor, m), n) for m, n in enumerate(tensor.shape)]
    keep = [min(n, rank) for n in tensor.shape]
    core = tensor
    for mode, (basis, n) in enumerate(zip(bases, keep, strict=True)):
        core = (core.movedim(mode, -1) @ basis[:, :n]).movedim(-1, mode)

    rough = core.float()
    # In the core's own basis the HOSVD start is the identity, filled up with random columns.
    generator = torch.Generator().manual_seed(seed)
    raced = []
    for start in range(starts):
        factors = [torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in keep]
        if start == 0:
            for factor, n in zip(factors, keep, strict=True):
                factor[:, :n] = torch.eye(n, dtype=torch.float64)
        raced.append(_als(rough, [f.float() for f in factors], tolerance, 5, share=_HEAVY))
    _, factors = min(raced, key=lambda run: run[0])
    error, factors = _als(rough, factors, tolerance, max_sweeps, share=_HEAVY)
    ridge = _LIGHT * error**2
    error, factors = _als(rough, factors, tolerance, max_sweeps, share=_LIGHT, ridge=ridge)
    factors = [f.double() for f in factors]

    ridge = _LIGHT * error**2
    if keep != list(tensor.shape):
        error, factors = _als(core, factors, tolerance, max_sweeps, share=_LIGHT, ridge=ridge)
        ridge = _LIGHT * error**2
        factors = [basis[:, :n] @ f for basis, n, f in zip(bases, keep, factors, strict=True)]
    else:
        factors = [basis @ f for basis, f in zip(bases, factors, strict=True)]
    _, factors = _als(tensor, factors, tolerance, max_sweeps, share=_LIGHT, ridge=ridge)
    if intensity(factors) > _DEGENERATE:
        few = max(max_sweeps // 4, 1)  # as of several penalties
        factors = list(correct(tensor, tuple(factors), tolerance=tolerance, max_sweeps=few))
    factors[0] = factors[0] * scale
    return balance(factors)


def energy_rank(tensor: Tensor, energy: float, *, most: int, seed: int) -> int:
    """Smallest CP rank found, by bisection over fits, that keeps a share of the squared norm.

    Parameters
    ----------
    tensor
        (n1, n2, ...), float64.
    energy
        Share in (0, 1].
    most
        Largest rank to try; where it does not do, the answer is ``most + 1``.
    """
    allowed = (1 - energy) * float(tensor.square().sum())
    low, high = 1, min(most + 1, exact_rank(tuple(tensor.shape)))
    while low < high:
        middle = (low + high) // 2
        factors = cp(tensor, middle, seed=seed)
        if residual(tensor, factors) <= allowed:
            high = middle
        else:
            low = middle + 1
    return low


def _unfold(tensor: Tensor, mode: int) -> Tensor:
    return tensor.movedim(mode, 0).flatten(1)


def _exact(tensor: Tensor, rank: int) -> list[Tensor]:
    """One component per position in the smaller modes; the largest mode holds the values."""
    largest = max(range(tensor.ndim), key=lambda m: tensor.shape[m])
    others = [m for m in range(tensor.ndim) if m != largest]
    factors = [torch.zeros(n, rank, dtype=tensor.dtype) for n in tensor.shape]
    values = _unfold(tensor, largest)
    positions = torch.cartesian_prod(*(torch.arange(tensor.shape[m]) for m in others))
    components = torch.arange(values.shape[1])
    factors[largest][:, components] = values
    for mode, index in zip(others, positions.T, strict=True):
        factors[mode][index, components] = 1.0
    return factors
