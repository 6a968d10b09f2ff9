"""Canonical polyadic (CP) decomposition by alternating least squares (ALS)."""

from __future__ import annotations

from functools import reduce
from math import prod, sqrt

import torch
from torch import Tensor

from factorize.tensor.svd import leading_subspace


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
    long as that pays (Ang et al. 2020), and each update is proximal, so that the error never rises.
    At `exact_rank` the answer is exact.

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
        return _balance(_exact(tensor, rank))
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
        raced.append(_als(rough, [f.float() for f in factors], tolerance, sweeps=5))
    _, factors = min(raced, key=lambda run: run[0])
    _, factors = _als(rough, factors, tolerance, sweeps=max_sweeps)
    factors = [f.double() for f in factors]

    if keep != list(tensor.shape):
        _, factors = _als(core, factors, tolerance, sweeps=max_sweeps)
        factors = [basis[:, :n] @ f for basis, n, f in zip(bases, keep, factors, strict=True)]
    else:
        factors = [basis @ f for basis, f in zip(bases, factors, strict=True)]
    _, factors = _als(tensor, factors, tolerance, sweeps=max_sweeps)
    factors[0] = factors[0] * scale
    return _balance(factors)


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
        model = (factors[0] @ _khatri_rao(list(factors[1:])).T).reshape(tensor.shape)
        if float((tensor - model).square().sum()) <= allowed:
            high = middle
        else:
            low = middle + 1
    return low


def _als(
    tensor: Tensor, factors: list[Tensor], tolerance: float, sweeps: int
) -> tuple[float, list[Tensor]]:
    """ALS sweeps over the modes (n0, *rest). Returns the relative error and the factors.

    A sweep has two large products: ``T^T A0`` (prod(rest), R), which serves the updates of all
    other modes and, before them, tells the error at the extrapolated point; and the one that
    updates A0. Each factor's Gram matrix is made once.
    """
    matrix = tensor.flatten(1)  # (n0, prod(rest))
    norm = float(tensor.norm())
    grams = [f.T @ f for f in factors]
    best, previous, step = 1.0, factors, 0.0  # an updated model is never worse than none
    for _ in range(sweeps):
        trial, trial_grams = factors, grams
        if step:
            trial = [f + step * (f - p) for f, p in zip(factors, previous, strict=True)]
            trial_grams = [f.T @ f for f in trial]
        partial = (matrix.T @ trial[0]).reshape(*tensor.shape[1:], -1)
        product = _contract(partial, trial[1:], 0)
        if step and _error(norm, product, trial[1], trial_grams) > best:
            step, trial, trial_grams = step / 2, factors, grams
            partial = (matrix.T @ trial[0]).reshape(*tensor.shape[1:], -1)
            product = _contract(partial, trial[1:], 0)
        else:
            step = min(max(step * 1.2, 0.5), 8.0)

        previous, factors, grams = factors, list(trial), list(trial_grams)
        for mode in (*range(1, len(factors)), 0):
            if mode == 0:
                product = matrix @ _khatri_rao(factors[1:])
            elif mode > 1:
                product = _contract(partial, factors[1:], mode - 1)
            gram = reduce(torch.mul, grams[:mode] + grams[mode + 1 :])
            factors[mode] = _update(product, factors[mode], gram)
            grams[mode] = factors[mode].T @ factors[mode]
        error = _error(norm, product, factors[0], grams)
        stalled = best - error <= tolerance * error
        best = min(error, best)
        if stalled:
            break
    return best, factors


def _contract(partial: Tensor, factors: list[Tensor], mode: int) -> Tensor:
    """Sum all modes but one of ``partial`` (n1, n2, .., R) out, each against its factor (n, R)."""
    for other, factor in enumerate(factors):
        if other != mode:
            shape = [1] * len(factors) + [factor.shape[1]]
            shape[other] = factor.shape[0]
            partial = (partial * factor.reshape(shape)).sum(other, keepdim=True)
    return partial.reshape(factors[mode].shape)


def _update(product: Tensor, factor: Tensor, gram: Tensor) -> Tensor:
    """The least-squares factor (n, R) for its MTTKRP (n, R) and the others' Gram matrix (R, R).

    A proximal term, 1e-10 of the mean diagonal (in float32 1e-5), keeps the normal equations
    solvable where components coincide, without moving the solution that sweeps converge to.
    """
    weight = (1e-10 if gram.dtype == torch.float64 else 1e-5) * float(gram.diagonal().mean())
    shifted = gram + weight * torch.eye(len(gram), dtype=gram.dtype)
    right = (product + weight * factor).T
    root, failed = torch.linalg.cholesky_ex(shifted)
    if int(failed):
        return torch.linalg.lstsq(shifted, right, driver="gelsd").solution.T
    return torch.cholesky_solve(right, root).T


def _error(norm: float, product: Tensor, factor: Tensor, grams: list[Tensor]) -> float:
    """``||T - model|| / ||T||`` from ||T||, a factor and its MTTKRP, and all Gram matrices."""
    inner = float((product * factor).sum(dtype=torch.float64))
    model = float(reduce(torch.mul, grams).sum(dtype=torch.float64))
    return sqrt(max(norm**2 - 2 * inner + model, 0.0)) / norm


def _khatri_rao(factors: list[Tensor]) -> Tensor:
    """Column-wise Kronecker product: (prod(n), R), the last factor's index fastest."""
    return reduce(lambda a, b: (a.unsqueeze(1) * b).flatten(0, 1), factors)


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


def _balance(factors: list[Tensor]) -> tuple[Tensor, ...]:
    """Share each component's norm evenly, so that no stage has huge weights to tune."""
    norms = torch.stack([f.norm(dim=0) for f in factors])  # (modes, R)
    even = norms.prod(0) ** (1 / len(factors))
    return tuple(f * (even / n.clamp_min(1e-300)) for f, n in zip(factors, norms, strict=True))
