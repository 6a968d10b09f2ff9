"""Kernels fitted in the norm of the layer's output: every method, beside closed forms.

Nothing here names a method but where it has a property of its own, so a method that is registered
tomorrow is covered.
"""

import itertools
import math
from dataclasses import replace
from math import ceil
from typing import Any

import convolutions
import pytest
import torch
from norms import (
    CLOSED,
    NORMS,
    SPEC,
    D,
    every_chain,
    every_norm,
    fitted,
    full,
    in_norm,
    planned,
    random,
)

from factorize import methods
from factorize.methods.chain import chain_kernel
from factorize.spec import ConvSpec
from factorize.tensor.norm import Norm
from factorize.types import LayerPlan


@pytest.mark.parametrize("variant", ["spatial_first", "pointwise_first"])
def test_linear_layer_is_fitted_in_a_norm_in_either_order(variant: str) -> None:
    spec = ConvSpec("c", "linear", D, 7, (), (), (), ())
    weight, norm = random(7, D), NORMS["full"](0)
    made = methods.factorize(LayerPlan(spec, "channel_svd", (3,), variant), weight, norm=norm)
    basis = torch.linalg.eigh(norm.times(weight) @ weight.T)[0]
    assert made.error**2 == pytest.approx(float(basis[:-3].sum() / basis.sum()), rel=1e-6)


@every_chain
def test_transposed_kernel_is_fitted_in_a_norm_as_any_other(method: str, variant: str) -> None:
    """Its channels are swapped in the module alone."""
    layer, weight = planned(method, variant), random(*SPEC.weight_shape)
    transposed = replace(SPEC, kind="conv_transpose2d", output_padding=(0, 0))
    plain, made = (
        methods.factorize(replace(layer, spec=spec), weight, norm=NORMS["full"](0))
        for spec in (SPEC, transposed)
    )
    assert made.error == plain.error
    assert all(map(torch.equal, made.weights, plain.weights))


@pytest.mark.parametrize("outputs", [7, 8])
def test_shuffle_in_one_group_is_fitted_in_a_norm(outputs: int) -> None:
    """Of 7 channels there are no groups but one: nothing is shuffled."""
    spec = ConvSpec("c", "conv2d", 7, outputs, (1, 1), (1, 1), (0, 0), (1, 1))
    half = random(7, 7, seed=1)
    layer, norm = LayerPlan(spec, "shuffled_grouped", (4, 2)), Norm((half @ half.T,))
    weight = random(*spec.weight_shape)
    plain = methods.factorize(layer, weight)
    before = norm.relative_error(weight, chain_kernel(plain.stages, plain.weights))
    assert methods.factorize(layer, weight, norm=norm).error < 0.98 * before


@every_norm
def test_norm_is_that_of_its_matrix(kind: str) -> None:
    norm, rows = NORMS[kind](0), random(7, D, seed=3)
    kernel = rows.reshape(SPEC.weight_shape)
    second = norm.second[0] if len(norm.second) == 1 else torch.kron(*norm.second)
    assert torch.allclose(norm.times(rows), rows @ second, rtol=1e-12, atol=1e-12)
    assert norm.energy(kernel) == pytest.approx(in_norm(kernel, norm) ** 2, rel=1e-12)
    assert norm.relative_error(kernel, kernel / 4) == pytest.approx(0.75, rel=1e-12)
    assert Norm().energy(kernel) == pytest.approx(float(rows.square().sum()), rel=1e-12)
    assert norm.to(torch.float32).times(rows.float()).dtype == torch.float32
    assert norm.relative_error(0 * kernel, 0 * kernel) == 0


@every_chain
@pytest.mark.parametrize("seed", range(3))
def test_identity_as_a_matrix_gives_the_plain_form(method: str, variant: str, seed: int) -> None:
    weight, layer = random(*SPEC.weight_shape, seed=seed), planned(method, variant)
    plain = methods.factorize(layer, weight)
    made, error = fitted(layer, weight, Norm((torch.eye(D, dtype=torch.float64),)))
    assert made.error == pytest.approx(error, rel=1e-9)
    assert 0.05 < made.error <= plain.error + 1e-9
    if (method, variant) in CLOSED:  # the plain form is the best there is
        assert made.error == pytest.approx(plain.error, abs=1e-9)


@every_chain
@every_norm
@pytest.mark.parametrize("seed", range(2))
def test_fit_in_the_norm_is_never_worse_than_the_plain_fit(
    method: str, variant: str, kind: str, seed: int
) -> None:
    weight, norm = random(*SPEC.weight_shape, seed=seed), NORMS[kind](seed)
    layer = planned(method, variant)
    plain = methods.factorize(layer, weight)
    before = norm.relative_error(weight, chain_kernel(plain.stages, plain.weights))
    made, error = fitted(layer, weight, norm)
    assert made.error == pytest.approx(error, rel=1e-9)
    assert made.error < 0.98 * before  # such norms leave much to win
    assert all(w.dtype == torch.float64 and torch.isfinite(w).all() for w in made.weights)


@pytest.mark.parametrize("method", convolutions.square())
@every_norm
def test_full_rank_is_exact_in_any_norm(method: str, kind: str) -> None:
    weight, norm = random(*SPEC.weight_shape), NORMS[kind](0)
    layers = [full(method, variant) for variant in methods.get(method).variants]
    plain = [methods.factorize(layer, weight).error for layer in layers]
    errors = [fitted(layer, weight, norm)[1] for layer in layers]
    assert min(plain) < 1e-9  # one order of the chain is exact, maybe not all
    assert all(e < 1e-6 for e, exact in zip(errors, plain, strict=True) if exact < 1e-9)


@every_norm
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_channel_svd_reaches_the_analytic_optimum(kind: str, rank: int) -> None:
    weight, norm = random(*SPEC.weight_shape), NORMS[kind](0)
    rows = weight.flatten(1)
    values = torch.linalg.eigvalsh(norm.times(rows) @ rows.T)
    optimum = math.sqrt(values[:-rank].sum() / values.sum())
    made, _ = fitted(LayerPlan(SPEC, "channel_svd", (rank,), "spatial_first"), weight, norm)
    assert made.error == pytest.approx(optimum, abs=1e-6)


@every_chain
def test_separable_norm_fits_as_its_kronecker_product_does(method: str, variant: str) -> None:
    weight, norm = random(*SPEC.weight_shape), NORMS["separable"](0)
    layer = planned(method, variant)
    made, _ = fitted(layer, weight, norm)
    whole, _ = fitted(layer, weight, Norm((torch.kron(*norm.second),)))
    assert made.error == pytest.approx(whole.error, rel=0.01)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_fit_does_not_depend_on_the_mode_of_its_caller(mode: Any) -> None:
    layer = planned("cp", "")
    expected, _ = fitted(layer, random(*SPEC.weight_shape), NORMS["full"](0))
    with mode():
        made, _ = fitted(layer, random(*SPEC.weight_shape), NORMS["full"](0))
    assert all(torch.equal(a, b) for a, b in zip(made.weights, expected.weights, strict=True))


@every_chain
@pytest.mark.parametrize("seed", range(2))
def test_a_higher_rank_errs_no_more(method: str, variant: str, seed: int) -> None:
    weight, norm = random(*SPEC.weight_shape, seed=seed), NORMS["full"](0)
    top = full(method, variant)
    errors = []
    for share in (0.1, 0.2, 0.6):
        rank = tuple(ceil(share * limit) for limit in top.rank)
        errors.append(fitted(replace(top, rank=rank), weight, norm)[1])
    assert errors[-1] < errors[0]
    assert all(after <= 1.001 * before for before, after in itertools.pairwise(errors))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rank", [4, 6])
def test_a_richer_family_errs_no_more(rank: int, seed: int) -> None:
    weight, norm = random(*SPEC.weight_shape, seed=seed), NORMS["full"](0)

    def error(method: str, *rank: int) -> float:
        return fitted(LayerPlan(SPEC, method, rank, ""), weight, norm)[1]

    assert error("cp", rank) <= 1.02 * error("cp4", rank)
    by_width = [error("block_term", rank, width) for width in (1, 2, rank)]
    assert by_width[0] <= 1.02 * error("cp", rank)  # the same family
    assert by_width[2] == pytest.approx(error("tucker2", rank, rank), rel=0.02)  # here too
    assert all(wide <= 1.001 * narrow for narrow, wide in itertools.pairwise(by_width))
