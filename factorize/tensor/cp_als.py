"""Alternating least squares (ALS) for the canonical polyadic (CP) form, kept from degenerating.

At a rank too low for the tensor, and on the way to most others, the components of plain ALS grow
without bound and cancel each other: the error hardly falls, rounding is amplified by the
components' norms, and so is whatever later moves the factors. Here large components cost.
"""

from __future__ import annotations

from functools import reduce
from math import sqrt

import torch
from torch import Tensor

_RIDGE = 1e-2  # the most that the components' squared norms weigh


def als(
    tensor: Tensor,
    factors: list[Tensor],
    tolerance: float,
    sweeps: int,
    *,
    share: float = 0.01,
    ridge: float = _RIDGE,
    goal: float = 0.0,
) -> tuple[float, list[Tensor]]:
    """ALS sweeps over the modes (n0, *rest), by descent of the error plus a ridge penalty.

    The penalty is the sum of the components' squared norms times a weight that only falls: after
    the error, so that the penalty stays within a share of it. The valleys where components cancel
    each other, in which plain ALS creeps, are avoided, and the error falls faster for it.

    A sweep has two large products: ``T^T A0`` (prod(rest), R), which serves the updates of all
    other modes and, before them, tells the objective at the extrapolated point; and the one that
    updates A0. Each factor's Gram matrix is made once.

    Parameters
    ----------
    tensor
        (n1, n2, ...), float32 or float64.
    factors
        The start, (n, R) each.
    tolerance
        Stop when the objective's root falls by less than this share of itself in a sweep.
    share
        Of the squared error, that the penalty may have.
    ridge
        The weight of the first sweep.
    goal
        Stop at a squared error, relative to the tensor's, of at most this.

    Returns
    -------
    The least root of the objective, relative to the tensor's norm, and the factors.
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
        if step:
            error, size = _error(norm, product, trial[1], trial_grams)
        if step and error + ridge * size > best:
            step, trial, trial_grams = step / 2, factors, grams
            partial = (matrix.T @ trial[0]).reshape(*tensor.shape[1:], -1)
            product = _contract(partial, trial[1:], 0)
        else:
            step = min(max(step * 1.2, 0.5), 8.0)

        previous, factors, grams = factors, list(trial), list(trial_grams)
        for mode in (*range(1, len(factors)), 0):
            if mode == 0:
                product = matrix @ khatri_rao(factors[1:])
            elif mode > 1:
                product = _contract(partial, factors[1:], mode - 1)
            gram = reduce(torch.mul, grams[:mode] + grams[mode + 1 :])
            factors[mode] = _update(product, factors[mode], gram, ridge)
            grams[mode] = factors[mode].T @ factors[mode]
        error, size = _error(norm, product, factors[0], grams)
        stalled = best - (error + ridge * size) <= 2 * tolerance * best
        ridge = min(ridge, share * error / max(size, 1e-300))
        best = min(best, error + ridge * size)
        if stalled or error <= goal:
            break
    return sqrt(best), factors


def correct(
    tensor: Tensor,
    factors: tuple[Tensor, ...],
    *,
    tolerance: float = 1e-5,
    max_sweeps: int = 250,
) -> tuple[Tensor, ...]:
    """Error-preserving correction: components of smaller norms at an error that is no higher.

    Lowers the `intensity` subject to the error given, by its Lagrangian: under a heavy penalty
    components that cancel each other collapse; lighter ones bring the error back to where it was.
    Where that ends in a worse minimum, it starts again from the factors given, less heavily.

    Parameters
    ----------
    tensor
        (n1, n2, ...) of three or more modes, float64.
    factors
        (n, R) each, float64.
    tolerance, max_sweeps
        As in `als`, for each penalty.

    Returns
    -------
    Factors of less intensity and of no higher an error, each component's norm shared evenly among
    them; those given, where none were found, as at a rank whose infimum no bounded factors reach.

    References
    ----------
    Phan, Tichavsky, Cichocki, "Error preserving correction: a method for CP decomposition at a
    target error bound", IEEE TSP 67 (2019), for the problem. It is solved otherwise here: the error
    may rise above its bound on the way (experiments/cp).
    """
    square = float(tensor.square().sum())
    if not square:
        return factors
    allowed, most = residual(tensor, factors), intensity(factors)
    goal = allowed / square
    shares = (1.0, 0.1, 0.01, 0.001, 0.0001)  # of the squared error, that a penalty may have
    for heaviest in range(len(shares)):
        found = list(balance(factors))
        for share in shares[heaviest:]:
            ridge = min(_RIDGE, 10 * share * goal)
            _, found = als(
                tensor, found, tolerance, max_sweeps, share=share, ridge=ridge, goal=goal
            )
            even = balance(found)
            if intensity(even) < most and residual(tensor, even) <= allowed:
                return even
    return factors


def intensity(factors: list[Tensor] | tuple[Tensor, ...]) -> float:
    """The sum of the components' squared norms; the model's own, where they are orthogonal."""
    return float(torch.stack([f.square().sum(0) for f in factors]).prod(0).sum())


def residual(tensor: Tensor, factors: list[Tensor] | tuple[Tensor, ...]) -> float:
    """The squared error ``||T - model||^2``."""
    model = factors[0] @ khatri_rao(factors[1:]).T
    return float((tensor.flatten(1) - model).square().sum())


def balance(factors: list[Tensor] | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Share each component's norm evenly, so that no stage has huge weights to tune."""
    norms = torch.stack([f.norm(dim=0) for f in factors])  # (modes, R)
    even = norms.prod(0) ** (1 / len(factors))
    return tuple(f * (even / n.clamp_min(1e-300)) for f, n in zip(factors, norms, strict=True))


def khatri_rao(factors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Column-wise Kronecker product: (prod(n), R), the last factor's index fastest."""
    return reduce(lambda a, b: (a.unsqueeze(1) * b).flatten(0, 1), factors)


def _contract(partial: Tensor, factors: list[Tensor], mode: int) -> Tensor:
    """Sum all modes but one of ``partial`` (n1, n2, .., R) out, each against its factor (n, R)."""
    for other, factor in enumerate(factors):
        if other != mode:
            shape = [1] * len(factors) + [factor.shape[1]]
            shape[other] = factor.shape[0]
            partial = (partial * factor.reshape(shape)).sum(other, keepdim=True)
    return partial.reshape(factors[mode].shape)


def _update(product: Tensor, factor: Tensor, gram: Tensor, ridge: float) -> Tensor:
    """The ridge regression's factor (n, R) for its MTTKRP (n, R) and the others' Gram (R, R).

    The Gram's diagonal turns a column's squared norm into its component's.

    A proximal term, 1e-10 of the mean diagonal (in float32 1e-5), keeps the normal equations
    solvable where components coincide, without moving the solution that sweeps converge to.
    """
    weight = (1e-10 if gram.dtype == torch.float64 else 1e-5) * float(gram.diagonal().mean())
    shifted = gram + torch.diag(ridge * gram.diagonal() + weight)
    right = (product + weight * factor).T
    root, failed = torch.linalg.cholesky_ex(shifted)
    if int(failed):
        return torch.linalg.lstsq(shifted, right, driver="gelsd").solution.T
    return torch.cholesky_solve(right, root).T


def _error(
    norm: float, product: Tensor, factor: Tensor, grams: list[Tensor]
) -> tuple[float, float]:
    """``||T - model||^2`` and `intensity`, relative to ``||T||^2``.

    From ||T||, a factor and its MTTKRP, and all Gram matrices.
    """
    inner = float((product * factor).sum(dtype=torch.float64))
    joint = reduce(torch.mul, grams)
    error = max(norm**2 - 2 * inner + float(joint.sum(dtype=torch.float64)), 0.0)
    return error / norm**2, float(joint.diagonal().sum(dtype=torch.float64)) / norm**2
