"""Fit any chain to a kernel in any norm: variable projection and L-BFGS."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from factorize.methods.chain import chain_kernel
from factorize.methods.projection import Joint, Projected, Weights
from factorize.spec import ConvSpec
from factorize.tensor.effort import Effort, effort
from factorize.tensor.noise import noise
from factorize.tensor.norm import Norm

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
    problem = _problem(stages, target, norm)
    if not problem.scale > 0:
        return start
    length = target[0].numel()
    tolerance = max(tolerance, QUICK) if effort() < Effort.WHOLE else tolerance
    most = sweeps or (SWEEPS_LARGE if length >= LARGE else SWEEPS)
    most = 1 if effort() == Effort.ROUGH else most
    points = _Points(problem.to(torch.float32) if length >= SINGLE else problem, start)
    if length >= SINGLE and not points.value() > RESOLVED:
        points = _Points(problem, start)
    free = points.free
    best, lowest = [w.detach().clone() for w in free], points.value()
    first = lowest
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

    if RESOLVED < lowest < (1 - RESOLVED) * first:  # no rounding makes up for that
        return found
    return min((found, start), key=lambda weights: _finite(error(weights)))


def _problem(stages: tuple[ConvSpec, ...], target: Tensor, norm: Norm) -> Joint:
    last, rows = stages[-1], target.flatten(1)
    features = last.in_channels * prod(last.kernel) * rows.shape[1]
    projected = last.groups == 1 and features <= MOST_FEATURES
    product = norm.times(rows)
    scale = float((product * rows).sum())
    return (Projected if projected else Joint)(stages, rows, norm, product, scale)


class _Points:
    """An objective at weights that L-BFGS moves; what it asks for again is not computed again.

    Each of its steps begins where the last one ended, at a point that its line search has seen.

    Attributes
    ----------
    free
        The weights.
    """

    def __init__(self, problem: Joint, start: Weights) -> None:
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


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf
