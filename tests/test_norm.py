"""Kernels fitted in the norm of the layer's output: every method, beside closed forms.

Nothing here names a method but where it has a property of its own, so a method that is registered
tomorrow is covered.
"""

import itertools
import math
from dataclasses import replace
from math import ceil, prod
from typing import Any

import convolutions
import pytest
import torch
from torch import Tensor

from factorize import methods
from factorize.methods import refine as solver
from factorize.methods.base import shaped
from factorize.methods.chain import chain_kernel
from factorize.methods.refine import refine
from factorize.methods.svd import SvdMethod
from factorize.spec import ConvSpec
from factorize.tensor.moments import (
    LayerCalibration,
    Moments,
    centred,
    output_error,
    shrinkage,
    target_and_norm,
)
from factorize.tensor.norm import Norm
from factorize.types import Factorization, LayerPlan

SPEC = ConvSpec("c", "conv2d", 6, 7, (3, 2), (1, 1), (0, 0), (1, 1))
D = 36
CHAINS = [(n, variant) for n in convolutions.square() for variant in methods.get(n).variants]
CLOSED = [chain for chain in CHAINS if isinstance(methods.get(chain[0]), SvdMethod)]
every_chain = pytest.mark.parametrize("method, variant", CHAINS)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(size: int, seed: int = 0, rank: int = D) -> Tensor:
    """A covariance with falling eigenvalues."""
    vectors = torch.linalg.qr(random(size, size, seed=seed))[0]
    values = 0.8 ** torch.arange(size, dtype=torch.float64)
    values[rank:] = 0
    return vectors * values @ vectors.T


NORMS = {
    "full": lambda seed: Norm((covariance(D, seed),)),
    "singular": lambda seed: Norm((covariance(D, seed, rank=24),)),
    "separable": lambda seed: Norm((covariance(6, seed), covariance(6, seed + 1))),
}
every_norm = pytest.mark.parametrize("kind", NORMS)


def planned(method: str, variant: str) -> LayerPlan:
    """The largest of twenty ranks that takes at most 0.6 of the parameters."""
    layer = full(method, variant)
    ranks = (tuple(ceil(share * top / 20) for top in layer.rank) for share in range(20, 0, -1))
    layers = (replace(layer, rank=rank) for rank in ranks)
    return next(one for one in layers if params(one) <= 0.6 * 7 * D)


def params(layer: LayerPlan) -> int:
    return sum(prod(stage.weight_shape) for stage in methods.chain_of(layer))


def full(method: str, variant: str) -> LayerPlan:
    return LayerPlan(SPEC, method, methods.get(method).max_rank(SPEC), variant)


def fitted(layer: LayerPlan, weight: Tensor, norm: Norm) -> tuple[Factorization, float]:
    """The fit, and the error of its kernel in the norm by brute force."""
    made = methods.factorize(layer, weight, norm=norm)
    return made, in_norm(weight - chain_kernel(made.stages, made.weights), norm) / in_norm(
        weight, norm
    )


def in_norm(kernel: Tensor, norm: Norm) -> float:
    second = torch.eye(D, dtype=torch.float64)
    for index, matrix in enumerate(norm.second):
        second = matrix if index == 0 else torch.kron(second, matrix)
    rows = kernel.flatten(1)
    return math.sqrt(max(float((rows @ second @ rows.T).trace()), 0.0))


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


@every_chain
def test_separable_norm_fits_as_its_kronecker_product_does(method: str, variant: str) -> None:
    weight, norm = random(*SPEC.weight_shape), NORMS["separable"](0)
    layer = planned(method, variant)
    made, _ = fitted(layer, weight, norm)
    whole, _ = fitted(layer, weight, Norm((torch.kron(*norm.second),)))
    assert made.error == pytest.approx(whole.error, rel=0.01)


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
    "float32": {"LARGE": 1},
    "all stages": {"MOST_FEATURES": 1},
    "all stages, float32": {"LARGE": 1, "MOST_FEATURES": 1},
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
    monkeypatch.setattr(solver, "LARGE", 1)
    monkeypatch.setattr(solver, "SWEEPS_LARGE", solver.SWEEPS)
    single, _ = fitted(layer, weight, norm)
    assert single.error <= 1.1 * double.error


def test_refine_keeps_the_start_where_all_weights_are_equal_to_the_norm() -> None:
    weight, norm = random(*SPEC.weight_shape), NORMS["full"](0)
    made, _ = fitted(full(*CHAINS[0]), weight, norm)
    zero = refine(made.stages, made.weights, 0 * weight, norm)
    assert all(torch.equal(a, b) for a, b in zip(zero, made.weights, strict=True))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_fit_does_not_depend_on_the_mode_of_its_caller(mode: Any) -> None:
    layer = planned("cp", "")
    expected, _ = fitted(layer, random(*SPEC.weight_shape), NORMS["full"](0))
    with mode():
        made, _ = fitted(layer, random(*SPEC.weight_shape), NORMS["full"](0))
    assert all(torch.equal(a, b) for a, b in zip(made.weights, expected.weights, strict=True))


@every_chain
@pytest.mark.parametrize("kind", ["full", "separable"])
@pytest.mark.parametrize("most_features", [1, 2**27])
def test_gradient_is_that_of_finite_differences(
    method: str, variant: str, kind: str, most_features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solver, "MOST_FEATURES", most_features)
    weight, norm = random(*SPEC.weight_shape), NORMS[kind](0)
    stages, start = start_of(method, variant, weight)
    problem = solver._problem(stages, tuple(start), weight, norm, norm.energy(weight))
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


def moments(patches: Tensor, outputs: Tensor | None = None, *, separable: bool = False) -> Moments:
    """Of patches (n, D) and outputs (n, O), each of its own image."""
    count = len(patches)
    second: tuple[Tensor, ...] = (patches.T @ patches / count,)
    if separable:
        shaped = patches.reshape(count, 6, 6)
        second = (
            torch.einsum("nck,ndk->cd", shaped, shaped) / count,
            torch.einsum("nck,ncl->kl", shaped, shaped) / shaped.square().sum(),
        )
    if outputs is None:
        return Moments(second, patches.mean(0), count, count)
    return Moments(
        second, patches.mean(0), count, count, outputs.T @ patches / count, outputs.mean(0),
        outputs.square().mean(0),
    )  # fmt: skip


def patches(count: int, seed: int = 0) -> Tensor:
    """Of a known covariance, about a mean that is not zero."""
    root = torch.linalg.cholesky(covariance(D) + 1e-6 * torch.eye(D, dtype=torch.float64))
    return random(count, D, seed=seed) @ root.T + random(D, seed=99) / 4


def test_centred_moments_are_those_of_centred_data() -> None:
    p, y = patches(300), random(300, 7) + 2
    found = centred(moments(p, y))
    wanted = moments(p - p.mean(0), y - y.mean(0))
    assert torch.allclose(found.second[0], wanted.second[0], atol=1e-12)
    for key in ("mean", "cross", "output_mean", "output_second"):
        assert torch.allclose(getattr(found, key), getattr(wanted, key), atol=1e-12), key
    assert (found.count, found.images) == (300, 300)
    bare = centred(moments(p))
    assert torch.equal(bare.second[0], found.second[0])
    assert bare.cross is None


def test_centred_separable_moments_have_the_partial_traces_of_centred_data() -> None:
    p = patches(300)
    found, wanted = (centred(moments(p, separable=True)), moments(p - p.mean(0), separable=True))
    for a, b in zip(found.second, wanted.second, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    flat = moments(torch.ones(5, D, dtype=torch.float64), separable=True)  # nothing is left
    assert Norm(centred(flat).second).energy(random(*SPEC.weight_shape)) < 1e-12


@pytest.mark.parametrize("centre", [False, True])
def test_target_is_the_regression_of_the_outputs_wanted(centre: bool) -> None:
    # E|y - W'p|^2 is the regression's own residual plus the error in the norm, for any W'.
    p = patches(500)
    weight = random(*SPEC.weight_shape)
    y = p @ weight.flatten(1).T + 0.3 * p.square()[:, :7] + random(500, 7, seed=5) + 1
    found = moments(p, y)
    if centre:
        found, p, y = centred(found), p - p.mean(0), y - y.mean(0)
    target, norm = target_and_norm(found, weight, 0.0)
    regression = torch.linalg.lstsq(p, y).solution.T
    assert torch.allclose(target.flatten(1), regression, rtol=0.01, atol=0.01)
    residual = float((y - p @ regression.T).square().sum(1).mean())
    for seed in range(3):
        other = random(*SPEC.weight_shape, seed=10 + seed)
        error = float((y - p @ other.flatten(1).T).square().sum(1).mean())
        assert residual + norm.energy(target - other) == pytest.approx(error, rel=1e-5)
        energy = float(y.square().sum(1).mean())
        assert output_error(found, weight, other) == pytest.approx(math.sqrt(error / energy))


def test_target_is_drawn_to_the_weight_and_is_it_where_the_layer_itself_is_wanted() -> None:
    p, weight = patches(500), random(*SPEC.weight_shape)
    y = p @ random(*SPEC.weight_shape, seed=5).flatten(1).T
    distance = [
        float((target_and_norm(moments(p, y), weight, shrunk)[0] - weight).norm())
        for shrunk in (0.0, 0.01, 0.1, 0.5, 1.0)
    ]
    assert all(after < before for before, after in itertools.pairwise(distance))
    assert distance[-1] < 1e-6
    own = p @ weight.flatten(1).T
    for shrunk in (0.0, 0.3):
        target, norm = target_and_norm(moments(p, own), weight, shrunk)
        assert torch.allclose(target, weight, atol=1e-6)
        assert float(norm.second[0].trace()) == pytest.approx(float(p.square().sum(1).mean()))
    assert target_and_norm(moments(p), weight, 0.3)[0] is weight


@pytest.mark.parametrize("repeated", [1, 3])
def test_target_of_too_few_or_linearly_dependent_patches_leaves_the_rest_alone(
    repeated: int,
) -> None:
    # Gray images as three channels, summed in float32: S is singular, and not quite symmetric.
    gray = patches(400 if repeated > 1 else 5)[:, : D // repeated].float().repeat(1, repeated)
    weight = random(*SPEC.weight_shape)
    y = gray.double() @ random(*SPEC.weight_shape, seed=5).flatten(1).T
    found = moments(gray.double(), y)
    second = (gray.T @ gray).double() / len(gray)
    found = replace(found, second=((second + second.T) / 2,))
    target, _ = target_and_norm(found, weight, 0.0)
    assert output_error(found, weight, target) < 0.01
    # Where the patches say nothing, the weight stays as it is.
    values, vectors = torch.linalg.eigh(gray.double().T @ gray.double())
    unseen = vectors[:, values < 1e-6 * values[-1]]
    assert unseen.shape[1] >= (D - D // repeated if repeated > 1 else D - 5)
    change = (target - weight).flatten(1)
    assert float((change @ unseen).norm()) < 0.1 * float(change.norm())


def pair(fit: int, held_out: int, seed: int = 0, *, isotropic: bool = False) -> LayerCalibration:
    drawn = random(fit + held_out, D, seed=seed) if isotropic else patches(fit + held_out, seed)
    return LayerCalibration(moments(drawn[:fit]), moments(drawn[fit:]))


def test_target_for_inputs_that_are_all_but_constant_is_finite() -> None:
    """Rounding is all that is left of S about the mean: its trace may be negative."""
    noise = 1e-9 * random(D, D, seed=1)
    second = noise + noise.T
    second -= (second.trace() / D + 1e-9) * torch.eye(D, dtype=torch.float64)
    cross = 1e-9 * random(7, D, seed=2)
    moments = Moments((second,), torch.zeros(D), 32, 32, cross, torch.zeros(7), torch.ones(7))
    target, _ = target_and_norm(moments, random(*SPEC.weight_shape), 0.25)
    assert torch.isfinite(target).all()


def test_shrinkage_falls_with_the_images_and_is_all_for_noise() -> None:
    shares = []
    for count in (2, 8, 32, 128, 512):
        drawn = [shrinkage(pair(4 * count, count, seed)) for seed in range(10)]
        assert all(0 <= share <= 1 for share in drawn)
        shares.append(sum(drawn) / 10)
    assert all(after < 0.8 * before for before, after in itertools.pairwise(shares))
    assert shares[-1] < 0.01
    assert shrinkage(pair(400, 100, isotropic=True)) > 0.8  # all that is not isotropic is noise
    few = [shrinkage(pair(4, 1, seed, isotropic=True)) for seed in range(20)]
    assert max(few) == 1
    nothing = moments(torch.zeros(4, D, dtype=torch.float64))
    assert shrinkage(LayerCalibration(nothing, nothing)) == 0


@pytest.mark.parametrize("count", [20, 100])
def test_shrinkage_errs_about_least_of_all_shares(count: int) -> None:
    mean = random(D, seed=99) / 4
    truth = covariance(D) + torch.outer(mean, mean)
    weight = random(*SPEC.weight_shape)

    def distance(layer: LayerCalibration, share: float) -> float:
        second = target_and_norm(layer.fit, weight, share)[1].second[0]
        return float((second - truth).square().sum())

    layers = [pair(count, count // 4, seed) for seed in range(20)]
    ours = sum(distance(layer, shrinkage(layer)) for layer in layers)
    best = min(sum(distance(one, share / 20) for one in layers) for share in range(21))
    assert ours <= 1.25 * best
    assert ours < 0.95 * sum(distance(layer, 0.0) for layer in layers)
