"""Time of two models, run alternately so that whatever slows the machine slows both."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from factorize.measure.environment import usable_cores
from factorize.tensor.call import (
    batch_size,
    call,
    evaluating,
    input_on,
    model_dtype,
    model_on,
    onnx_feeds,
    onnx_session,
)
from factorize.types import Latency, Speedup

_SECONDS = 3.0  # of timing, enough runs given
_WARMUP = 1.0  # seconds before that
_ENOUGH = 10  # runs
_LIMIT = 30.0  # seconds, however few runs there are


def torch_speedup(
    original: nn.Module,
    compressed: nn.Module,
    example_input: Any,
    *,
    device: torch.device | str = "cpu",
    threads: int | None = None,
    runs: int = 200,
) -> Speedup:
    """Time two models in eager PyTorch, alternately, on one batch.

    Parameters
    ----------
    original, compressed
        In eval mode while they are timed. One that is not on `device` is copied there.
    example_input
        One batch; timed is one call on it.
    threads
        Of PyTorch's CPU kernels, set for the timing only; None: all usable cores.
    runs
        At most so many pairs of runs; about 3 seconds are spent unless the models are so slow
        that ten pairs take longer.
    """
    device = torch.device(device)
    original, compressed = model_on(original, device), model_on(compressed, device)
    example_input = input_on(example_input, device)
    threads = threads or usable_cores()
    timed = _cuda_ms if device.type == "cuda" else _wall_ms
    threads_before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with evaluating(original, compressed):
            pairs = _interleave(
                lambda: timed(lambda: call(original, example_input)),
                lambda: timed(lambda: call(compressed, example_input)),
                runs,
            )
    finally:
        torch.set_num_threads(threads_before)
    dtype = str(model_dtype(original)).removeprefix("torch.")
    return _summary(pairs, "torch", device.type, dtype, batch_size(example_input), threads)


def onnx_speedup(
    original_path: str | Path,
    compressed_path: str | Path,
    example_input: Any,
    *,
    threads: int | None = None,
    runs: int = 200,
) -> Speedup:
    """Time two ONNX files in ONNX Runtime's CPU provider, alternately, on one batch.

    Parameters
    ----------
    example_input
        One batch as the PyTorch model took it when it was exported.
    threads, runs
        As in `torch_speedup`.
    """
    threads = threads or usable_cores()
    original, compressed = (
        onnx_session(path, threads) for path in (original_path, compressed_path)
    )
    feeds = onnx_feeds(original, example_input)
    pairs = _interleave(
        lambda: _wall_ms(lambda: original.run(None, feeds)),
        lambda: _wall_ms(lambda: compressed.run(None, feeds)),
        runs,
    )
    dtype = next((str(v.dtype) for v in feeds.values() if v.dtype.kind == "f"), "float32")
    return _summary(pairs, "onnxruntime", "cpu", dtype, batch_size(example_input), threads)


def _wall_ms(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def _cuda_ms(run: Callable[[], Any]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _interleave(
    original: Callable[[], float], compressed: Callable[[], float], runs: int
) -> np.ndarray:
    """Take the times in ms of pairs of runs, (pairs, 2); each comes first every other time."""
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
        if time.perf_counter() - begin > (_SECONDS if len(pairs) >= _ENOUGH else _LIMIT):
            break
    return np.array(pairs)


def _summary(
    pairs: np.ndarray, runtime: str, device: str, dtype: str, batch: int, threads: int
) -> Speedup:
    def spread(values: np.ndarray) -> tuple[float, float, float]:
        p10, median, p90 = np.percentile(values, (10, 50, 90))
        return float(median), float(p10), float(p90)

    speedup, speedup_p10, speedup_p90 = spread(pairs[:, 0] / pairs[:, 1])
    return Speedup(
        runtime=runtime,
        device=device,
        dtype=dtype,
        batch=batch,
        threads=threads,
        runs=len(pairs),
        original=Latency(*spread(pairs[:, 0])),
        compressed=Latency(*spread(pairs[:, 1])),
        speedup=speedup,
        speedup_p10=speedup_p10,
        speedup_p90=speedup_p90,
    )
