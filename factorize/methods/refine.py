"""Fit any chain to a kernel in any norm: variable projection and L-BFGS."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from factorize.methods.chain import chain_kernel, extended
from factorize.spec import ConvSpec
from factorize.tensor.effort import Effort, effort
from factorize.tensor.noise import noise
from factorize.tensor.norm import Norm

Weights = tuple[Tensor, ...]

ITERATIONS = 10  # of L-BFGS in a sweep
HISTORY = 8  # steps of L-BFGS that are remembered; more cost time and win nothing
LARGE = 1500  # rows of this length and longer are not swept as often
SWEEPS, SWEEPS_LARGE = 12, 5
QUICK = 0.05  # tolerance where fits are only compared
SINGLE = 200  # rows of this length and longer are swept in float32, in half the time,
RESOLVED = 1e-3  # down to this squared error: rounding is well below it
_SEEN = 4  # points whose objective is remembered
MOST_FEATURES = 2**27  # entries of the features of the last stage; beyond, it is not projected out


@torch.inference_mode(False)  # gradients are needed, whatever mode the caller is in
def refine(
    stages: tuple[ConvSpec, ...],
    start: Weights,
    target: Tensor,
    norm: Norm,
    *,
    tolerance: float = 0.01,
    sweeps: int | None = None,
    trace: Callable[[float], None] | None = None,
) -> Weights:
    """The weights of a chain whose kernel W' is close to a target: ``||T - W'||^2`` is minimised.

    The kernel is linear in the last stage, so its best weights for any others are the solution of
    normal equations in the norm. L-BFGS moves the others on the objective that is left (variable
    projection), which converges in a tenth of the iterations that all factors together take. A
    last stage that is grouped is moved with the others. Long rows are swept in float32, as far as
    it tells errors apart, and finished in float64. Where `tensor.noise` is on the input of the last
    stage, its expected squared error is a part of the objective.

    Parameters
    ----------
    start
        One weight per stage.
    target
        (O, I, *kernel), float64.
    tolerance
        Stop when a sweep lowers the squared error by less than this share of it; at least `QUICK`
        where fits are quick (`tensor.effort`).
    sweeps
        The most; by default `SWEEPS`, or `SWEEPS_LARGE`. One where fits are rough.
    trace
        Called with the squared error relative to the target's, at the start and after each sweep;
        it never rises.

    Returns
    -------
    One weight per stage, float64; never worse than `start`.

    References
    ----------
    Golub & Pereyra, "Separable nonlinear least squares: the variable projection method and its
    applications", Inverse Problems 19 (2003).
    """
    scale = norm.energy(target)
    if not scale:
        return start
    problem = _problem(stages, target, norm, scale)
    length = target[0].numel()
    tolerance = max(tolerance, QUICK) if effort() < Effort.WHOLE else tolerance
    most = sweeps or (SWEEPS_LARGE if length >= LARGE else SWEEPS)
    most = 1 if effort() == Effort.ROUGH else most
    points = _Points(problem.to(torch.float32) if length >= SINGLE else problem, start)
    if length >= SINGLE and not points.value() > RESOLVED:
        points = _Points(problem, start)
    free = points.free
    best, lowest = [w.detach().clone() for w in free], points.value()
    if trace:
        trace(lowest)
    optimizer = torch.optim.LBFGS(
        free, max_iter=ITERATIONS, history_size=HISTORY, line_search_fn="strong_wolfe",
        tolerance_grad=0.0, tolerance_change=0.0,
    )  # fmt: skip
    for _ in range(most if free else 0):
        with torch.enable_grad():
            optimizer.step(points.value)
        reached = points.value()
        if not reached < lowest:
            break
        enough = lowest - reached < tolerance * lowest
        best, lowest = [w.detach().clone() for w in free], reached
        if trace:
            trace(lowest)
        if enough:
            break
    found = problem.weights([w.double() for w in best])
    if noise():  # of which the last stage is a part too
        kept = problem.weights([*problem.free(start)])
        errors = [problem.objective([*problem.free(one)]) for one in (found, kept)]
        return found if _finite(errors[0]) <= _finite(errors[1]) else kept

    def error(weights: Weights) -> float:
        return norm.energy(target - chain_kernel(stages, weights))

    return min((found, start), key=lambda weights: _finite(error(weights)))


def _problem(stages: tuple[ConvSpec, ...], target: Tensor, norm: Norm, scale: float) -> _Joint:
    last = stages[-1]
    features = last.in_channels * prod(last.kernel) * target[0].numel()
    projected = last.groups == 1 and features <= MOST_FEATURES
    return (_Projected if projected else _Joint)(stages, target.flatten(1), norm, scale)


class _Points:
    """An objective at weights that L-BFGS moves; what it asks for again is not computed again.

    Each of its steps begins where the last one ended, at a point that its line search has seen.

    Attributes
    ----------
    free
        The weights.
    """

    def __init__(self, problem: _Joint, start: Weights) -> None:
        self.problem = problem
        dtype = problem.target.dtype
        self.free = [w.detach().to(dtype, copy=True).requires_grad_() for w in problem.free(start)]
        self._seen: list[tuple[list[Tensor], float, list[Tensor | None]]] = []

    def value(self) -> float:
        """The objective, and the gradients in the weights."""
        seen = (one for one in self._seen if all(map(torch.equal, one[0], self.free)))
        _, value, gradients = next(seen, None) or self._computed()
        for weight, gradient in zip(self.free, gradients, strict=True):
            weight.grad = gradient
        return value

    def _computed(self) -> tuple[list[Tensor], float, list[Tensor | None]]:
        for weight in self.free:
            weight.grad = None
        with torch.enable_grad():
            value = self.problem.objective(self.free, backward=True)
        point = [w.detach().clone() for w in self.free]
        self._seen = [*self._seen[1 - _SEEN :], (point, value, [w.grad for w in self.free])]
        return self._seen[-1]


class _Joint:
    """The squared error as a function of the weights of all stages."""

    def __init__(
        self, stages: tuple[ConvSpec, ...], target: Tensor, norm: Norm, scale: float
    ) -> None:
        self.stages, self.target, self.norm, self.scale = stages, target, norm, scale
        self.product = norm.times(target)  # T S

    def to(self, dtype: torch.dtype) -> _Joint:
        return type(self)(self.stages, self.target.to(dtype), self.norm.to(dtype), self.scale)

    def free(self, weights: Weights) -> Weights:
        """The weights that are moved."""
        return weights

    def weights(self, free: list[Tensor]) -> Weights:
        """The weights of all stages."""
        return tuple(free)

    def objective(self, free: list[Tensor], *, backward: bool = False) -> float:
        """``||T - W'||^2 / ||T||^2``; its gradients are added to those of the weights, if asked."""
        kernel = chain_kernel(self.stages, tuple(free)).flatten(1)
        with torch.no_grad():
            difference = kernel - self.target
            gradient = self.norm.times(difference)
            value = float((gradient * difference).sum()) / self.scale
        if backward:
            kernel.backward(2 / self.scale * gradient)
        return value


class _Projected(_Joint):
    """The squared error with the best last stage, as a function of the weights of the others.

    With the features F, the kernel from an input patch to a patch of the last stage, W' = B F and
    B = T S F^T (F S F^T)^-1. At the best B its own change does not count: the gradient is that
    with B held fixed. Independent noise on the features, a share n of each one's own square, adds
    n sum_r |b_r|^2 (F S F^T)_rr to the error, and n (F S F^T)_rr to the diagonal that is inverted.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.noise = noise()

    def free(self, weights: Weights) -> Weights:
        return weights[:-1]

    def weights(self, free: list[Tensor]) -> Weights:
        with torch.no_grad():
            last, _, _, _ = self._last(self._features(free))
        return (*free, last.reshape(self.stages[-1].kernel_shape))

    def objective(self, free: list[Tensor], *, backward: bool = False) -> float:
        features = self._features(free)  # (C k, D)
        with torch.no_grad():
            last, weighted, gram, inner = self._last(features)
            misfit = last @ gram - 2 * inner
            value = 1 + float((misfit * last).sum(dtype=torch.float64)) / self.scale
            if len(features) > len(last):  # the order that costs less
                gradient = last.T @ (last @ weighted - self.product)
            else:
                gradient = last.T @ last @ weighted - last.T @ self.product
            if self.noise:
                gains = self.noise * last.square().sum(0)
                value += float((gains * gram.diagonal()).sum(dtype=torch.float64)) / self.scale
                gradient += gains[:, None] * weighted
        if backward and features.requires_grad:
            features.backward(2 / self.scale * gradient)
        return value

    def _features(self, free: list[Tensor]) -> Tensor:
        last = self.stages[-1]
        if not free:  # a chain of one stage
            size = self.target.shape[1]
            return torch.eye(size, dtype=self.target.dtype, device=self.target.device)
        return extended(chain_kernel(self.stages[:-1], tuple(free)), last.kernel).flatten(1)

    def _last(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best last stage B (O, C k), and F S, F S F^T, T S F^T."""
        features = features.detach()
        weighted = self.norm.times(features)
        gram, inner = weighted @ features.T, self.product @ features.T
        double = gram.dtype == torch.float64
        ridge = (1e-10 if double else 1e-6) * float(gram.diagonal().mean()) + 1e-30
        gram_ = gram + (ridge + self.noise * gram.diagonal()).diag()
        root, failed = torch.linalg.cholesky_ex(gram_)
        if int(failed):
            values, vectors = torch.linalg.eigh(gram_.double())
            inverse = torch.where(values > ridge, 1 / values, 0.0)
            last = (inner.double() @ vectors * inverse @ vectors.T).to(gram.dtype)
        else:
            last = torch.cholesky_solve(inner.T, root).T
        return last, weighted, gram, inner


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf
