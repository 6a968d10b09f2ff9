"""Ranks read off singular values: share of energy, and variational Bayes (VBMF)."""

from __future__ import annotations

from math import ceil, log, sqrt

import numpy as np
from torch import Tensor

from factorize.tensor.svd import singular_values


def energy_rank(singular_values: Tensor, energy: float) -> int:
    """Smallest rank that keeps a share of the squared singular values.

    Parameters
    ----------
    singular_values
        (..., n), descending; a batch shares one rank, its energies are summed.
    energy
        Share in (0, 1].
    """
    squares = (singular_values**2).reshape(-1, singular_values.shape[-1]).sum(0)
    kept = squares.cumsum(0)
    # float64 sums may end a rounding below the total: energy=1.0 must still be reachable.
    target = energy * float(kept[-1]) * (1 - 1e-15)
    return min(int((kept < target).sum()) + 1, len(squares))


def discarded_share(singular_values: Tensor, rank: int) -> float:
    """Relative Frobenius error of the best rank-R approximation (of a batch: jointly).

    Parameters
    ----------
    singular_values
        (..., n), descending.
    rank
        R, the number of singular values kept.
    """
    total = float((singular_values**2).sum())
    tail = float((singular_values[..., rank:] ** 2).sum())
    return sqrt(tail / total) if total > 0 else 0.0


def vbmf_rank(singular_values: Tensor, rows: int, columns: int) -> int:
    """Rank by the analytic solution of empirical variational Bayes matrix factorization.

    The noise variance is estimated too. The answer can be 0: no direction stands out of noise.

    Parameters
    ----------
    singular_values
        (n,), descending, all of them: n = min(rows, columns).
    rows, columns
        Shape of the matrix.

    References
    ----------
    Nakajima, Sugiyama, Babacan, Tomioka, "Global analytic solution of fully-observed variational
    Bayesian matrix factorization", JMLR 14 (2013), Theorem 2, Corollary 2 and section 6.
    """
    small, large = min(rows, columns), max(rows, columns)
    squares = singular_values.numpy() ** 2
    if squares.sum() == 0:
        return 0
    alpha = small / large
    tau_bar = 2.5129 * sqrt(alpha)
    x_bar = (1 + tau_bar) * (1 + alpha / tau_bar)

    # Bounds of the noise variance (the paper's eq. 53): at most all of it is noise; at least what
    # lies beyond the largest rank that the model can tell from noise.
    upper = squares.sum() / (small * large)
    most = min(ceil(small / (1 + alpha)) - 1, small - 1)
    lower = max(squares[most] / (large * x_bar), squares[most:].mean() / large)
    lower = max(lower, 1e-12 * upper)

    def free_energy(log_variance: float) -> float:
        x = squares / (large * np.exp(log_variance))
        signal = x[x > x_bar]
        noise = np.maximum(x[x <= x_bar], 1e-300)
        tau = 0.5 * (signal - (1 + alpha) + np.sqrt((signal - (1 + alpha)) ** 2 - 4 * alpha))
        return float(
            (noise - np.log(noise)).sum()
            + (signal - tau).sum()
            + np.log((tau + 1) / signal).sum()
            + alpha * np.log(tau / alpha + 1).sum()
        )

    variance = upper
    if lower < upper:
        from scipy.optimize import minimize_scalar  # slow to import

        best = minimize_scalar(free_energy, bounds=(log(lower), log(upper)), method="bounded")
        variance = float(np.exp(best.x))
    return int((squares > large * variance * x_bar).sum())


def unfolding_vbmf_rank(tensor: Tensor, mode: int) -> int:
    """VBMF rank of a tensor unfolded along one mode."""
    return matrix_vbmf_rank(tensor.movedim(mode, 0).flatten(1))


def matrix_vbmf_rank(matrix: Tensor) -> int:
    """VBMF rank of a matrix (m, n)."""
    return vbmf_rank(singular_values(matrix), *matrix.shape)
