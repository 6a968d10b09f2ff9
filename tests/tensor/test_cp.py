"""CP by penalised ALS and its error-preserving correction, on tensors that make plain ALS fail."""

from __future__ import annotations

import itertools
from math import sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import factorize.tensor.cp as module
from factorize.tensor.cp import cp, exact_rank
from factorize.tensor.cp_als import als, balance, correct, intensity, residual


def matrix_product(n: int, m: int, p: int) -> Tensor:
    """The bilinear map (n, m) x (m, p): low border ranks, and cancelling components on the way."""
    tensor = torch.zeros(n * m, m * p, p * n, dtype=torch.float64)
    for i, j, k in itertools.product(range(n), range(m), range(p)):
        tensor[i * m + j, j * p + k, k * n + i] = 1
    return tensor


def border(shape: tuple[int, ...], terms: int, noise: float, seed: int) -> Tensor:
    """A sum of ``aab + aba + baa``, each of rank 3 and, in the limit, of rank 2; and noise."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    tensor = torch.zeros(shape, dtype=torch.float64)
    for _ in range(terms):
        a = [torch.nn.functional.normalize(draw(n), dim=0) for n in shape]
        b = [torch.nn.functional.normalize(draw(n), dim=0) for n in shape]
        for mode in range(3):
            tensor += torch.einsum("i,j,k->ijk", *(b[m] if m == mode else a[m] for m in range(3)))
    rest = draw(*shape)
    return tensor + noise * tensor.norm() * rest / rest.norm()


def low_rank(shape: tuple[int, ...], rank: int, noise: float, collinear: float) -> Tensor:
    """Nearly collinear components, a bottleneck of ALS, and noise."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    factors = [collinear * draw(n, 1) + draw(n, rank) for n in shape]
    tensor = torch.einsum("ir,jr,kr->ijk", *factors)
    rest = draw(*shape)
    return tensor + noise * tensor.norm() * rest / rest.norm()


def start(tensor: Tensor, rank: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in tensor.shape]


def plain(tensor: Tensor, rank: int, seed: int, sweeps: int = 1000) -> tuple[Tensor, ...]:
    """ALS that is free to degenerate."""
    return balance(als(tensor, start(tensor, rank, seed), -1.0, sweeps, share=0.0, ridge=0.0)[1])


def explicit(tensor: Tensor, factors: tuple[Tensor, ...]) -> float:
    """The squared error of the model as the convolutions compute it."""
    letters = "ijkl"[: tensor.ndim]
    model = torch.einsum(",".join(f"{c}r" for c in letters) + "->" + letters, *factors)
    return float((tensor - model).square().sum())


# Kernels and seeds where the correction is known to succeed; it does not on all (experiments/cp).
DEGENERATE = {
    "matrix product 2x2x2 at 7": (matrix_product(2, 2, 2), 7),
    "matrix product 3x3x3 at 20": (matrix_product(3, 3, 3), 20),
    "collinear and noise at 14": (low_rank((16, 16, 9), 12, noise=0.3, collinear=2.0), 14),
    "collinear and noise at 20": (low_rank((16, 16, 9), 12, noise=0.3, collinear=4.0), 20),
    "border rank and noise at 20": (border((16, 16, 9), 4, noise=1.0, seed=0), 20),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_correction_shrinks_degenerate_components_tenfold_at_no_higher_an_error(name: str) -> None:
    tensor, rank = DEGENERATE[name]
    before = plain(tensor, rank, seed=0)
    after = correct(tensor, before)
    assert intensity(before) > 50 * float(tensor.square().sum())  # it did degenerate
    assert residual(tensor, after) <= residual(tensor, before)
    assert intensity(after) <= intensity(before) / 10


@given(
    st.tuples(*[st.integers(1, 6)] * 3) | st.tuples(*[st.integers(1, 4)] * 4),
    st.integers(1, 8),
    st.integers(0, 99),
    st.sampled_from([0, 1, 60]),
)
def test_correction_never_raises_the_error(
    shape: tuple[int, ...], rank: int, seed: int, sweeps: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(*shape, generator=generator, dtype=torch.float64)
    before = plain(tensor, rank, seed, sweeps)
    after = correct(tensor, before, max_sweeps=10)
    assert residual(tensor, after) <= residual(tensor, before)
    assert intensity(after) <= intensity(before)


def test_correction_of_zero_and_of_an_exact_fit() -> None:
    factors = start(torch.empty(5, 4, 3), 2, seed=0)
    tensor = torch.einsum("ir,jr,kr->ijk", *factors)
    after = correct(tensor, balance(factors))
    assert explicit(tensor, after) <= residual(tensor, balance(factors))
    zero = tuple(torch.zeros(n, 2, dtype=torch.float64) for n in (5, 4, 3))
    assert all(not f.any() for f in correct(torch.zeros(5, 4, 3, dtype=torch.float64), zero))


@pytest.mark.parametrize("name", DEGENERATE)
def test_penalised_fit_is_no_worse_than_a_long_plain_one_and_has_small_components(
    name: str,
) -> None:
    tensor, rank = DEGENERATE[name]
    factors = cp(tensor, rank, seed=0, tolerance=1e-5, max_sweeps=500)
    long = plain(tensor, rank, seed=0, sweeps=500)
    assert explicit(tensor, factors) <= 1.02**2 * explicit(tensor, long)
    assert intensity(factors) <= intensity(long) / 10


def test_cp_corrects_what_is_degenerate(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = matrix_product(3, 3, 3)
    corrected = cp(tensor, 21, seed=5)
    monkeypatch.setattr(module, "correct", lambda _, factors, **__: factors)
    fitted = cp(tensor, 21, seed=5)
    energy = float(tensor.square().sum())
    assert intensity(fitted) > 1000 * energy
    assert intensity(corrected) <= 180 * energy
    assert explicit(tensor, corrected) <= explicit(tensor, fitted)


@pytest.mark.parametrize("share", [0.01, 1.0])
def test_objective_never_rises_and_counts_the_penalty(share: float) -> None:
    tensor, rank = DEGENERATE["collinear and noise at 14"]
    roots = []
    for sweeps in range(1, 40):
        root, factors = als(tensor, start(tensor, rank, 0), 0.0, sweeps, share=share)
        roots.append(root)
        error = explicit(tensor, tuple(factors)) / float(tensor.square().sum())
        assert sqrt(error) <= root * (1 + 1e-9)
    assert all(after <= before for before, after in itertools.pairwise(roots))


def test_als_stops_at_its_goal() -> None:
    tensor, rank = DEGENERATE["collinear and noise at 14"]
    _, reached = als(tensor, start(tensor, rank, 0), 0.0, 500, goal=0.3**2)
    _, fitted = als(tensor, start(tensor, rank, 0), 0.0, 500)
    square = float(tensor.square().sum())
    assert residual(tensor, reached) <= 0.3**2 * square
    assert residual(tensor, fitted) < 0.9 * residual(tensor, reached)


@pytest.mark.parametrize("shape", [(6, 5, 4), (5, 4, 3, 3)])
@pytest.mark.parametrize("over", [0, 3])
def test_at_and_above_the_exact_rank_the_fit_is_exact(shape: tuple[int, ...], over: int) -> None:
    generator = torch.Generator().manual_seed(1)
    tensor = torch.randn(*shape, generator=generator, dtype=torch.float64)
    factors = cp(tensor, exact_rank(shape) + over, seed=0)
    assert explicit(tensor, factors) <= 1e-29 * float(tensor.square().sum())


def test_low_rank_tensors_are_recovered() -> None:
    tensor = low_rank((16, 12, 9), 5, noise=0.0, collinear=0.0)
    factors = cp(tensor, 5, seed=0, tolerance=1e-6, max_sweeps=500)
    assert explicit(tensor, factors) <= 1e-10 * float(tensor.square().sum())


def test_zero_tensor_and_rank_one() -> None:
    zero = torch.zeros(4, 3, 2, dtype=torch.float64)
    assert all(not f.any() for f in cp(zero, 2, seed=0))
    one = low_rank((6, 5, 4), 1, noise=0.0, collinear=0.0)
    factors = cp(one, 1, seed=0)
    assert explicit(one, factors) <= 1e-12 * float(one.square().sum())


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_does_not_matter(scale: float) -> None:
    tensor, rank = DEGENERATE["collinear and noise at 20"]
    unit, scaled = cp(tensor, rank, seed=0), cp(tensor * scale, rank, seed=0)
    share = explicit(tensor, unit) / float(tensor.square().sum())
    assert explicit(tensor, tuple(f / scale ** (1 / 3) for f in scaled)) / float(
        tensor.square().sum()
    ) == pytest.approx(share, rel=1e-2)


def test_seeds_reproduce() -> None:
    tensor, rank = DEGENERATE["collinear and noise at 20"]
    first, again, other = (cp(tensor, rank, seed=seed) for seed in (4, 4, 5))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
