"""Time of two nets, run alternately so that whatever slows the machine slows both."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from factorize.measure import runtimes
from factorize.measure.interleave import median_bounds
from factorize.measure.runtimes.base import Run, Target
from factorize.onnx_graph import Twin
from factorize.types import Latency, Speedup

_SECONDS = 3.0  # of timing, enough runs given
_WARMUP = 1.0  # seconds before that
_PRECISE = 0.01  # of the median speedup, to either side with 95 % confidence: more runs until then
_PATIENCE = 12.0  # seconds, that those may take
_ENOUGH = 20  # runs
_LIMIT = 30.0  # seconds, however few runs there are


def speedups(
    files: tuple[Path, Path],
    original: nn.Module,
    compressed: nn.Module,
    example_input: Any,
    targets: Sequence[Target],
) -> list[Speedup]:
    """Time both models on each target, in the form that its runtime reads.

    Parameters
    ----------
    files
        ONNX files of both; where one is not there, targets that read such are left out.
    """
    return [
        speedup(target, one, two, given)
        for target in targets
        if (found := _form_for(target, files, original, compressed, example_input))
        for one, two, given in [found]
    ]


def remarks(
    files: tuple[Path, Path],
    original: nn.Module,
    compressed: nn.Module,
    example_input: Any,
    target: Target,
) -> list[str]:
    """What is to be told of how the compressed net runs on a target.

    Raises
    ------
    ExportError
        It does not, or not as it should.
    """
    found = _form_for(target, files, original, compressed, example_input)
    return runtimes.get(target.runtime).remarks(target, *found[1:]) if found else []


def _form_for(
    target: Target, files: tuple[Path, Path], original: Any, compressed: Any, example_input: Any
) -> tuple[Any, Any, Any] | None:
    """Both nets and their input as the target's runtime reads them; None where they are not."""
    if not reads_files(target):
        return original, compressed, example_input
    if not all(file.exists() for file in files):
        return None
    fed = original.fed(example_input) if isinstance(original, Twin) else example_input
    return (*files, fed)


def reads_files(target: Target) -> bool:
    """Whether nets are given to the target's runtime as ONNX files."""
    return runtimes.get(target.runtime).reads == "onnx"


def speedup(
    target: Target, original: Any, compressed: Any, example_input: Any, *, runs: int = 200
) -> Speedup:
    """Time two nets on the target, alternately, on one batch.

    Parameters
    ----------
    original, compressed
        In the form that the runtime reads: modules, or ONNX files or the bytes of them. Modules
        are in eval mode while they are timed; one that is not where and as the target wants it is
        copied.
    example_input
        As the model takes it, or took it when it was exported; repeated to the target's batch size,
        where it is made of tensors with one sample.
    runs
        At most so many pairs of runs. About 3 seconds are spent, up to 12 where the median speedup
        is not known to 1 % by then; more if the nets are so slow that twenty pairs take longer.
    """
    runtime = runtimes.get(target.runtime)
    with runtime.net_runs(target, (original, compressed), example_input) as (one, two):
        pairs = _interleave(one, two, runs)
    middle, low, high = _spread(pairs[:, 0] / pairs[:, 1])
    return Speedup(
        runtime=target.label,
        device=runtime.device,
        dtype=runtime.computes_in(target, original, example_input),
        batch=target.batch,
        threads=target.threads or 0,
        runs=len(pairs),
        original=Latency(*_spread(pairs[:, 0])),
        compressed=Latency(*_spread(pairs[:, 1])),
        speedup=middle,
        speedup_p10=low,
        speedup_p90=high,
    )


def _interleave(original: Run, compressed: Run, runs: int) -> np.ndarray:
    """Take the times in ms of pairs of runs, (pairs, 2); each comes first every other time."""
    for run in (original, compressed):
        run()  # what is compiled here would use up the time of the warm-up
    begin = time.perf_counter()
    # Warm-up: allocation, kernel choice, caches, and threads that settle on their cores.
    while time.perf_counter() - begin < _WARMUP:
        original()
        compressed()
    pairs: list[tuple[float, float]] = []
    begin = time.perf_counter()
    while len(pairs) < max(runs, 1):
        if len(pairs) % 2:
            second, first = compressed(), original()
        else:
            first, second = original(), compressed()
        pairs.append((first, second))
        spent = time.perf_counter() - begin
        enough = len(pairs) >= _ENOUGH and spent > _SECONDS
        if spent > _LIMIT or (enough and (spent > _PATIENCE or _uncertainty(pairs) < _PRECISE)):
            break
    return np.array(pairs)


def _uncertainty(pairs: Sequence[tuple[float, float]]) -> float:
    """Half of the 95 % confidence interval of the median speedup, relative to it."""
    first, second = np.array(pairs).T
    ratios = np.sort(first / second)
    low, high = median_bounds(len(ratios))
    return float(ratios[high] - ratios[low]) / 2 / float(np.median(ratios))


def _spread(values: np.ndarray) -> tuple[float, float, float]:
    """Median, 10th and 90th percentile."""
    p10, median, p90 = np.percentile(values, (10, 50, 90))
    return float(median), float(p10), float(p90)
