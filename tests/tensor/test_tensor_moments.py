"""Moments of patches: about their mean, the target and norm they give, and how far to shrink."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from norms import SPEC, D, covariance, random
from torch import Tensor

from factorize.tensor.moments import (
    LayerCalibration,
    Moments,
    centred,
    output_error,
    shrinkage,
    target_and_norm,
)
from factorize.tensor.norm import Norm


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
