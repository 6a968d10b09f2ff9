"""The maths, beside tensorly as the oracle and beside closed forms."""

import itertools
from unittest.mock import patch

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorly.decomposition import parafac, partial_tucker

from factorize.tensor import svd, tucker
from factorize.tensor.cp import _als, cp, exact_rank
from factorize.tensor.ranks import discarded_share, energy_rank, vbmf_rank
from factorize.tensor.svd import leading_subspace, singular_values, split
from factorize.tensor.tucker import tucker2

pytestmark = pytest.mark.filterwarnings("ignore:Trying to compute SVD:UserWarning:tensorly")


def smooth(*shape: int, seed: int = 0) -> torch.Tensor:
    """A tensor with falling spectra, as trained kernels have."""
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(*shape, generator=generator, dtype=torch.float64)
    for mode, n in enumerate(shape):
        scale = torch.linspace(1, 0.1, n, dtype=torch.float64)
        tensor = tensor * scale.reshape([-1 if i == mode else 1 for i in range(len(shape))])
    return tensor


def rebuilt(factors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.from_numpy(tensorly.cp_to_tensor((None, [f.numpy() for f in factors])))


@pytest.mark.parametrize("shape", [(12, 10, 9), (24, 16, 9), (8, 9, 3, 3)])
@pytest.mark.parametrize("rank", [2, 7, 20])
def test_cp_is_no_worse_than_tensorly(shape: tuple[int, ...], rank: int) -> None:
    tensor = smooth(*shape)
    ours = (rebuilt(cp(tensor, rank, seed=0)) - tensor).norm()
    with tensorly.backend_context("numpy"):
        peer = parafac(tensor.numpy(), rank, random_state=0)
        theirs = np.linalg.norm(tensorly.cp_to_tensor(peer) - tensor.numpy())
    assert float(ours) <= 1.02 * theirs


@pytest.mark.parametrize("ranks", [(2, 3), (5, 4), (9, 2)])
def test_tucker2_is_no_worse_than_tensorly(ranks: tuple[int, int]) -> None:
    tensor = smooth(12, 10, 9)
    core, left, right = tucker2(tensor, ranks)
    ours = (torch.einsum("qpk,oq,ip->oik", core, left, right) - tensor).norm()
    with tensorly.backend_context("numpy"):
        (peer, factors), _ = partial_tucker(tensor.numpy(), ranks, modes=[0, 1], random_state=0)
        model = tensorly.tenalg.multi_mode_dot(peer, factors, modes=[0, 1])
    assert float(ours) <= 1.001 * np.linalg.norm(model - tensor.numpy())
    for factor, rank in ((left, ranks[0]), (right, ranks[1])):
        eye = torch.eye(rank, dtype=torch.float64)
        assert torch.allclose(factor.T @ factor, eye, atol=1e-12)


@pytest.mark.parametrize("ranks", [(4, 3), (4, 10), (12, 3), (12, 10)])
@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_tucker2_of_a_tensor_of_its_ranks_is_exact(ranks: tuple[int, int], noise: float) -> None:
    """But for what the noise outside of the subspaces is worth."""
    tensor = torch.einsum("qpk,oq,ip->oik", smooth(4, 3, 9), smooth(12, 4), smooth(10, 3))
    rest = smooth(12, 10, 9, seed=1)
    tensor = tensor + noise * tensor.norm() * rest / rest.norm()
    core, left, right = tucker2(tensor, ranks)
    error = (torch.einsum("qpk,oq,ip->oik", core, left, right) - tensor).norm() / tensor.norm()
    assert float(error) <= max(noise, 1e-13)


@pytest.mark.parametrize("panel", [1, 4, 128])
def test_gram_matrices_are_symmetric_whatever_the_panels(panel: int) -> None:
    tensor, basis = smooth(6, 5, 10), torch.linalg.qr(smooth(6, 3))[0]
    for given_basis, expected in ((None, tensor), (basis, basis.T @ tensor.flatten(1))):
        rows = expected.reshape(-1, 10)
        with patch.object(tucker, "PANEL", panel):
            gram = tucker._gram(tensor, given_basis)
        assert torch.allclose(gram, rows.T @ rows, rtol=0, atol=1e-13)
        assert torch.equal(gram, gram.T)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ranks", [(3, 4), (7, 6)])
def test_tucker2_momentum_goes_where_plain_iteration_does(
    ranks: tuple[int, int], seed: int
) -> None:
    """On noise, where it is slow: 100 plain sweeps are no better by much."""
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(12, 10, 9, generator=generator, dtype=torch.float64)
    by_right = torch.linalg.svd(tensor.transpose(0, 1).flatten(1))[0][:, : ranks[1]]
    for _ in range(100):
        by_left = torch.linalg.svd((tensor.mT @ by_right).flatten(1))[0][:, : ranks[0]]
        rows = (by_left.T @ tensor.flatten(1)).reshape(-1, *tensor.shape[1:]).transpose(0, 1)
        by_right = torch.linalg.svd(rows.flatten(1))[0][:, : ranks[1]]
    plain = torch.einsum("oik,oq,ip->qpk", tensor, by_left, by_right)
    found = tucker2(tensor, ranks, tolerance=1e-6)[0]
    assert float(found.square().sum()) >= 0.99 * float(plain.square().sum())


@given(st.tuples(*[st.integers(1, 5)] * 3), st.integers(0, 99))
def test_cp_at_the_exact_rank_is_exact(shape: tuple[int, ...], seed: int) -> None:
    tensor = smooth(*shape, seed=seed)
    factors = cp(tensor, exact_rank(shape), seed=seed)
    assert torch.allclose(rebuilt(factors), tensor, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_cp_error_never_rises_from_sweep_to_sweep(seed: int) -> None:
    tensor = smooth(10, 8, 9, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    start = [torch.randn(n, 12, generator=generator, dtype=torch.float64) for n in tensor.shape]
    errors = [_als(tensor, list(start), 0.0, sweeps)[0] for sweeps in range(1, 25)]
    assert all(after <= before for before, after in itertools.pairwise(errors))
    assert errors[-1] < errors[0]


def test_cp_shares_each_component_evenly_among_its_factors() -> None:
    factors = cp(smooth(12, 10, 9), 6, seed=0)
    norms = torch.stack([factor.norm(dim=0) for factor in factors])
    assert torch.allclose(norms, norms[:1].expand_as(norms))


@pytest.mark.parametrize(
    ("large", "tall", "within"), [(99, 99, 1e-12), (1, 99, 1e-7), (99, 1, 1e-7)]
)
@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_split_is_the_nearest_matrix_of_its_rank(
    large: int, tall: int, within: float, rows: int, columns: int, data: st.DataObject
) -> None:
    matrix = smooth(rows, columns, seed=data.draw(st.integers(0, 99)))
    rank = data.draw(st.integers(1, min(rows, columns)))
    with patch.multiple(svd, LARGE=large, TALL=tall):
        left, right = split(matrix, rank)
        found = singular_values(matrix)
    values = torch.linalg.svdvals(matrix)
    assert torch.allclose(found, values, rtol=0, atol=within)
    error = (left @ right - matrix).norm()
    if rank == min(rows, columns):
        within = 1e-12
    assert float(error) == pytest.approx(float(values[rank:].norm()), abs=within)
    assert torch.allclose(left.norm(dim=0), right.norm(dim=1))
    basis = leading_subspace(matrix, min(rank, rows))
    assert float((basis @ (basis.T @ matrix) - matrix).norm()) == pytest.approx(
        float(error), abs=1e-7
    )


def test_split_of_tall_matrices_is_that_of_each() -> None:
    batch = smooth(3, 4 * svd.TALL, 4)
    for matrices in (batch, batch.mT):
        left, right = split(matrices, 2)
        for matrix, product in zip(matrices, left @ right, strict=True):
            u, values, vh = torch.linalg.svd(matrix, full_matrices=False)
            assert torch.allclose(product, u[:, :2] * values[:2] @ vh[:2], atol=1e-12)
        left, right = split(matrices, 4)
        assert torch.allclose(left @ right, matrices, rtol=0, atol=1e-14)


def test_split_of_a_large_matrix_of_low_rank_is_exact_and_finite() -> None:
    """What has no energy is not resolved, and must do no harm."""
    matrix = smooth(30, 4) @ smooth(4, 20)
    matrix[:, :5] = 0
    with patch.object(svd, "LARGE", 1):
        for rank in (4, 15, 20):
            left, right = split(matrix, rank)
            assert torch.allclose(left @ right, matrix, rtol=0, atol=1e-7)
            assert left.isfinite().all()
            assert right.isfinite().all()
        assert not split(torch.zeros(6, 3, dtype=torch.float64), 2)[0].any()


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=12), st.floats(0.01, 1))
def test_energy_rank_is_the_smallest_that_keeps_the_share(
    values: list[float], energy: float
) -> None:
    spectrum = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    rank = energy_rank(spectrum, energy)
    assert 1 - discarded_share(spectrum, rank) ** 2 >= energy - 1e-9
    if rank > 1:
        assert 1 - discarded_share(spectrum, rank - 1) ** 2 < energy + 1e-9


def test_full_energy_needs_the_full_rank() -> None:
    assert energy_rank(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64), 1.0) == 3


@pytest.mark.parametrize("planted", [0, 1, 5, 12])
@pytest.mark.parametrize("shape", [(40, 200), (200, 40), (64, 64)])
def test_vbmf_counts_the_signals_above_noise(planted: int, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(planted)
    rows, columns = shape
    noise = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    left = torch.randn(rows, planted, generator=generator, dtype=torch.float64)
    right = torch.randn(planted, columns, generator=generator, dtype=torch.float64)
    values = torch.linalg.svdvals(3 * left @ right + noise)
    assert vbmf_rank(values, rows, columns) == planted


def test_vbmf_of_nothing_is_zero() -> None:
    assert vbmf_rank(torch.zeros(4, dtype=torch.float64), 4, 9) == 0
