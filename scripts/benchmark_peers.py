"""What `benchmark_methods.py` times the methods beside: LAPACK and tensorly."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from benchmark_tables import Row
from tensorly.decomposition import parafac, partial_tucker
from tensorly.decomposition._cp import initialize_cp
from torch import Tensor

from factorize.methods.base import Method
from factorize.methods.svd import SvdMethod
from factorize.spec import Rank

LAPACK, SPEEDUP = 1.2, 10.0  # the targets: at most LAPACK's time, at least as fast as tensorly
PARTIAL_TUCKER = "tensorly partial_tucker"
METHODS = ("channel_svd", "cp", "cp4", "depthwise_pointwise", "spatial_svd", "tucker2")  # have one


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the function returned."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def spread(seconds: Sequence[float]) -> Row:
    """Median, range and number of runs."""
    return {
        "seconds": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "runs": len(seconds),
    }


def peer_of(method: Method, exact: Tensor, rank: Rank) -> tuple[Callable[[], Any] | None, str]:
    """What a method is timed beside, run after run; CP is raced instead."""
    if isinstance(method, SvdMethod):
        matrices = [method.matrix(exact, v).contiguous() for v in method.variants]
        return (
            lambda: [torch.linalg.svd(matrix, full_matrices=False) for matrix in matrices],
            "torch.linalg.svd of both orders",
        )
    if method.name == "tucker2":
        kernel = exact.flatten(2).numpy()
        return (
            lambda: partial_tucker(kernel, rank[::-1], modes=[0, 1]),
            PARTIAL_TUCKER,
        )
    return None, ""


def race_parafac(kernel: np.ndarray, rank: int, ours: float, error: float) -> Row:
    """Run `parafac` until it is as good as ours, or has had `SPEEDUP` times as long.

    Its own start (by SVD) counts; the error of that start, which only its callback asks for, not.
    """
    budget = SPEEDUP * ours
    random = np.random.RandomState(0)
    start_seconds, start = timed(lambda: initialize_cp(kernel, rank, random_state=random))
    history: list[tuple[float, float]] = []  # (seconds, error) after the start, each iteration
    begin = 0.0

    def callback(_: Any, reached: Any) -> bool:
        nonlocal begin
        begin = begin or time.perf_counter()
        history.append((start_seconds + time.perf_counter() - begin, float(reached)))
        return history[-1][0] >= budget or float(reached) <= error

    failure = None
    try:
        if start_seconds < budget:
            parafac(kernel, rank, init=start, tol=1e-8, random_state=0, callback=callback)
    except np.linalg.LinAlgError as reason:
        failure = str(reason)
    return {
        "name": "tensorly parafac",
        "seconds": history[-1][0] if history else start_seconds,
        "runs": 1,
        "start_seconds": start_seconds,
        "first_iteration_seconds": history[1][0] - start_seconds if len(history) > 1 else None,
        "iterations": max(len(history) - 1, 0),
        "budget_seconds": budget,
        "error_within_budget": min((e for s, e in history if s <= budget), default=None),
        "error": history[-1][1] if history else None,
        "seconds_to_equal_error": next((s for s, e in history if e <= error), None),
        "failure": failure,
    }


def tucker_error(exact: Tensor, core: np.ndarray, factors: Sequence[np.ndarray]) -> float:
    """Relative error of a Tucker-2 model of a kernel."""
    modelled = np.einsum("qpk,oq,ip->oik", core, *factors, optimize=True)
    return float((exact.flatten(2) - torch.from_numpy(modelled)).norm() / exact.norm())


def target_met(row: Row) -> bool:
    """Whether a method is as fast beside its peer as it is to be.

    CP meets its target where `parafac`, given `SPEEDUP` times as long, still errs more.
    """
    peer = row["peer"]
    if "budget_seconds" in peer:
        equal = peer["seconds_to_equal_error"]
        return equal is None or equal >= peer["budget_seconds"]
    if "error" in peer:
        return row["ratio"] >= SPEEDUP and row["error"] <= peer["error"] * (1 + 1e-6)
    return row["ratio"] >= 1 / LAPACK
