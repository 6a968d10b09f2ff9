"""The solver that fits all stages of a chain in a norm: its optimum, its sweeps, its gradient."""

import itertools
from typing import Any

import pytest
import torch
from norms import (
    CHAINS,
    CLOSED,
    NORMS,
    SPEC,
    covariance,
    every_chain,
    every_norm,
    fitted,
    full,
    planned,
    random,
)
from torch import Tensor

from factorize import methods
from factorize.methods import refine as solver
from factorize.methods.base import shaped
from factorize.methods.chain import chain_kernel
from factorize.methods.refine import refine
from factorize.spec import ConvSpec
from factorize.tensor.norm import Norm


def whitened(seed: int) -> tuple[Norm, tuple[Tensor, Tensor]]:
    """A norm that is separable in all axes (diagonal over channels), and roots of its parts."""
    channels = torch.diag(0.7 ** torch.arange(6, dtype=torch.float64))
    positions = torch.kron(covariance(3, seed), covariance(2, seed + 1))
    return Norm((channels, positions)), (channels.sqrt(), torch.linalg.cholesky(positions))


@pytest.mark.parametrize("method, variant", CLOSED)
@pytest.mark.parametrize("separable", [True, False])
def test_solver_reaches_the_optimum_where_a_singular_value_decomposition_knows_it(
    method: str, variant: str, separable: bool
) -> None:
    # In a norm that weighs each axis by itself the best W' is the plain one of the kernel so
    # weighed: the singular values tell its error.
    weight, (norm, (channels, positions)) = random(*SPEC.weight_shape), whitened(0)
    weighed = (channels @ weight.flatten(2) @ positions).reshape(weight.shape)
    if not separable:
        norm = Norm((torch.kron(*norm.second),))
    layer = planned(method, variant)
    optimum = methods.get(method).predicted_error(weighed, layer.rank, variant)
    assert optimum is not None
    made = methods.factorize(layer, weight, norm=norm)
    assert optimum * (1 - 1e-9) <= made.error <= 1.05 * optimum
    further = refine(made.stages, made.weights, weight, norm, tolerance=0.0, sweeps=100)
    error = norm.relative_error(weight, chain_kernel(made.stages, further))
    assert error == pytest.approx(optimum, abs=1e-6)


def start_of(
    method: str, variant: str, weight: Tensor
) -> tuple[tuple[ConvSpec, ...], list[Tensor]]:
    """A chain, and weights that are not yet good."""
    layer = planned(method, variant)
    stages = methods.chain_of(layer)
    plain = methods.get(method).decompose(weight, layer.rank, variant, seed=0)
    return stages, [w + 0.1 * random(*w.shape, seed=i) for i, w in enumerate(shaped(stages, plain))]


PATHS = {  # what to shrink to come there
    "float64": {},
    "float32": {"SINGLE": 1},
    "all stages": {"MOST_FEATURES": 1},
    "all stages, float32": {"SINGLE": 1, "MOST_FEATURES": 1},
}


@every_chain
@every_norm
@pytest.mark.parametrize("path", PATHS)
def test_error_falls_sweep_by_sweep_to_that_of_the_result(
    method: str, variant: str, kind: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in PATHS[path].items():
        monkeypatch.setattr(solver, name, value)
    weight, norm = random(*SPEC.weight_shape), NORMS[kind](0)
    stages, start = start_of(method, variant, weight)
    errors: list[float] = []
    made = refine(stages, tuple(start), weight, norm, trace=errors.append)
    assert len(errors) > 1
    assert all(after <= before for before, after in itertools.pairwise(errors))
    squared = norm.energy(weight - chain_kernel(stages, made)) / norm.energy(weight)
    assert squared == pytest.approx(errors[-1], abs=1e-5 if "float32" in path else 1e-9)
    assert squared < norm.energy(weight - chain_kernel(stages, tuple(start))) / norm.energy(weight)
    assert all(w.dtype == torch.float64 for w in made)


@every_chain
def test_long_rows_are_fitted_as_well_in_float32(
    method: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, norm = random(*SPEC.weight_shape), NORMS["full"](0)
    layer = planned(method, variant)
    double, _ = fitted(layer, weight, norm)
    monkeypatch.setattr(solver, "SINGLE", 1)
    single, _ = fitted(layer, weight, norm)
    assert single.error <= 1.1 * double.error


@pytest.mark.parametrize("path", PATHS)
def test_no_point_is_looked_at_twice(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PATHS[path].items():
        monkeypatch.setattr(solver, name, value)
    kind: Any = solver.Joint if "all stages" in path else solver.Projected
    objective, points = kind.objective, list[Tensor]()

    def noted(problem: Any, free: list[Tensor], **how: bool) -> float:
        now = torch.cat([weight.detach().flatten() for weight in free])
        assert not any(torch.equal(now, one) for one in points)
        points.append(now)
        return objective(problem, free, **how)

    monkeypatch.setattr(kind, "objective", noted)
    weight, norm, errors = random(*SPEC.weight_shape), NORMS["full"](0), list[float]()
    stages, start = start_of("cp", "", weight)
    refine(stages, tuple(start), weight, norm, trace=errors.append, tolerance=0.0, sweeps=3)
    assert len(errors) == 4
    assert len(points) > 3 * solver.ITERATIONS


def test_refine_keeps_the_start_where_all_weights_are_equal_to_the_norm() -> None:
    weight, norm = random(*SPEC.weight_shape), NORMS["full"](0)
    made, _ = fitted(full(*CHAINS[0]), weight, norm)
    zero = refine(made.stages, made.weights, 0 * weight, norm)
    assert all(torch.equal(a, b) for a, b in zip(zero, made.weights, strict=True))


@every_chain
@pytest.mark.parametrize("kind", ["full", "separable"])
@pytest.mark.parametrize("most_features", [1, 2**27])
def test_gradient_is_that_of_finite_differences(
    method: str, variant: str, kind: str, most_features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solver, "MOST_FEATURES", most_features)
    weight, norm = random(*SPEC.weight_shape), NORMS[kind](0)
    stages, start = start_of(method, variant, weight)
    problem = solver._problem(stages, weight, norm)
    free = [w.clone().requires_grad_() for w in problem.free(tuple(start))]
    assert len(free) == len(stages) - (most_features > 1 and stages[-1].groups == 1)
    with torch.enable_grad():
        value = problem.objective(free, backward=True)
    made = problem.weights([w.detach() for w in free])
    squared = norm.energy(weight - chain_kernel(stages, made)) / norm.energy(weight)
    assert value == pytest.approx(squared, rel=1e-9)
    for index in range(len(free)):
        direction, step = random(*free[index].shape, seed=9), 1e-5

        def at(
            shift: float, index: int = index, direction: Tensor = direction
        ) -> float:  # the objective along the direction
            moved = [w.detach().clone() for w in free]
            moved[index] += shift * direction
            return problem.objective(moved)

        slope = (at(step) - at(-step)) / (2 * step)
        assert float((free[index].grad * direction).sum()) == pytest.approx(
            slope, rel=1e-4, abs=1e-8
        )
