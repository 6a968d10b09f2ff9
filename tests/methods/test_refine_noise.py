"""Chains fitted for values that will be rounded: their terms are kept small."""

from __future__ import annotations

import pytest
import torch
from norms import NORMS, SPEC, every_chain, planned, random
from test_refine import start_of
from torch import Tensor

from factorize import methods
from factorize.methods import refine as solver
from factorize.methods.chain import chain_kernel
from factorize.methods.refine import refine
from factorize.spec import ConvSpec
from factorize.tensor.noise import noise, with_noise
from factorize.tensor.norm import Norm

SHARE = 0.03


def objective(
    stages: tuple[ConvSpec, ...], weights: tuple[Tensor, ...], target: Tensor, norm: Norm
) -> float:
    """Squared error, and what noise on the last stage's input adds to it on average, relative."""
    error = norm.energy(target - chain_kernel(stages, weights))
    if stages[-1].groups == 1 and len(stages) > 1:
        every = torch.eye(
            weights[-1][0].numel(), dtype=target.dtype
        )  # each input of the last stage
        all_of = (*weights[:-1], every.reshape(-1, *weights[-1].shape[1:]))
        features = chain_kernel(stages, all_of).flatten(1)
        powers = (norm.times(features) * features).sum(1)
        error += SHARE * float((weights[-1].flatten(1).square().sum(0) * powers).sum())
    return error / norm.energy(target)


@every_chain
@pytest.mark.parametrize("kind", NORMS)
def test_error_and_expected_noise_are_lower_than_without(
    method: str, variant: str, kind: str
) -> None:
    weight, norm = random(*SPEC.weight_shape), NORMS[kind](0)
    stages, start = start_of(method, variant, weight)
    plain = refine(stages, tuple(start), weight, norm)
    with with_noise(SHARE):
        fitted = refine(stages, tuple(start), weight, norm)
    if stages[-1].groups > 1:  # it is not projected out
        assert all(map(torch.equal, plain, fitted))
        return
    assert objective(stages, fitted, weight, norm) < objective(stages, plain, weight, norm)
    assert objective(stages, fitted, weight, norm) < objective(stages, tuple(start), weight, norm)


@every_chain
def test_it_is_never_worse_than_its_start(method: str, variant: str) -> None:
    weight, norm = random(*SPEC.weight_shape), NORMS["full"](0)
    stages, start = start_of(method, variant, weight)
    with with_noise(SHARE):
        once = refine(stages, tuple(start), weight, norm)
        again = refine(stages, once, weight, norm, sweeps=1)
    assert objective(stages, again, weight, norm) <= objective(stages, once, weight, norm) * (
        1 + 1e-9
    )


@every_chain
def test_without_noise_nothing_changes(method: str, variant: str) -> None:
    weight, norm = random(*SPEC.weight_shape), NORMS["full"](0)
    layer = planned(method, variant)
    plain = methods.factorize(layer, weight, norm=norm).weights
    with with_noise(0.0):
        assert all(map(torch.equal, plain, methods.factorize(layer, weight, norm=norm).weights))
    with with_noise(SHARE):
        assert noise() == SHARE
    assert noise() == 0
    assert all(map(torch.equal, plain, methods.factorize(layer, weight, norm=norm).weights))


@every_chain
def test_gradient_with_noise_is_that_of_finite_differences(method: str, variant: str) -> None:
    weight, norm = random(*SPEC.weight_shape), NORMS["full"](0)
    stages, start = start_of(method, variant, weight)
    with with_noise(SHARE):
        problem = solver._problem(stages, weight, norm)
    free = [w.clone().requires_grad_() for w in problem.free(tuple(start))]
    with torch.enable_grad():
        value = problem.objective(free, backward=True)
    made = problem.weights([w.detach() for w in free])
    assert value == pytest.approx(objective(stages, made, weight, norm), rel=1e-8)
    for index in range(len(free)):
        direction, step = random(*free[index].shape, seed=9), 1e-5

        def at(shift: float, index: int = index, direction: Tensor = direction) -> float:
            moved = [w.detach().clone() for w in free]
            moved[index] += shift * direction
            return problem.objective(moved)

        slope = (at(step) - at(-step)) / (2 * step)
        found = float((free[index].grad * direction).sum())
        assert found == pytest.approx(slope, rel=1e-4, abs=1e-8)
