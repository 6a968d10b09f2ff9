"""Time of two models, run alternately so that whatever slows the machine slows both."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from factorize.errors import DataError
from factorize.measure.interleave import median_bounds
from factorize.measure.target import Target
from factorize.tensor.call import (
    batch_size,
    call,
    evaluating,
    input_on,
    laid_out_,
    model_dtype,
    model_on,
    onnx_feeds,
    onnx_session,
)
from factorize.types import Latency, Speedup

Run = Callable[[], float]

_SECONDS = 3.0  # of timing, enough runs given
_WARMUP = 1.0  # seconds before that
_PRECISE = 0.01  # of the median speedup, to either side with 95 % confidence: more runs until then
_PATIENCE = 12.0  # seconds, that those may take
_ENOUGH = 20  # runs
_LIMIT = 30.0  # seconds, however few runs there are


def torch_speedup(
    original: nn.Module,
    compressed: nn.Module,
    example_input: Any,
    target: Target,
    *,
    runs: int = 200,
) -> Speedup:
    """Time two models in PyTorch on the target, alternately, on one batch.

    Parameters
    ----------
    original, compressed
        In eval mode while they are timed. One that is not where and as the target wants it is
        copied.
    example_input
        Repeated to the target's batch size, where it is made of tensors with one sample.
    runs
        At most so many pairs of runs. About 3 seconds are spent, up to 12 where the median speedup
        is not known to 1 % by then; more if the models are so slow that twenty pairs take longer.
    """
    with torch_runs(target, (original, compressed), example_input) as (one, two):
        pairs = _interleave(one, two, runs)
    dtype = str(model_dtype(original)).removeprefix("torch.")
    return _summary(pairs, target, target.dtype if target.device == "cuda" else dtype)


def onnx_speedup(
    original: str | Path | bytes,
    compressed: str | Path | bytes,
    example_input: Any,
    target: Target,
    *,
    runs: int = 200,
) -> Speedup:
    """Time two ONNX files, or the bytes of them, in ONNX Runtime's CPU provider, alternately.

    Parameters
    ----------
    example_input
        As the PyTorch model took it when it was exported; repeated as in `torch_speedup`.
    runs
        As in `torch_speedup`.
    """
    pairs = _interleave(
        onnx_run(target, original, example_input),
        onnx_run(target, compressed, example_input),
        runs,
    )
    tensors = [v for v in tree_leaves(example_input) if isinstance(v, torch.Tensor)]
    dtype = next((v.dtype for v in tensors if v.is_floating_point()), torch.float32)
    return _summary(pairs, target, str(dtype).removeprefix("torch."))


def onnx_run(target: Target, model: str | Path | bytes, example_input: Any) -> Run:
    """A function that runs an ONNX model once and returns milliseconds."""
    session = onnx_session(model, target.threads)
    feeds = onnx_feeds(session, batched(example_input, target.batch))
    return lambda: _wall_ms(lambda: session.run(None, feeds))


@contextmanager
def torch_runs(
    target: Target, models: Sequence[nn.Module], example_input: Any
) -> Iterator[list[Run]]:
    """A function for each model that runs it once on the target and returns milliseconds."""
    inputs = input_on(batched(example_input, target.batch), target.device)
    placed: list[Any] = [model_on(model, target.device) for model in models]
    timed = _wall_ms
    if target.device == "cuda":
        timed, dtype = _cuda_ms, getattr(torch, target.dtype)
        placed = [laid_out_(copy.deepcopy(m).to(dtype), torch.channels_last) for m in placed]
        inputs = tree_map(lambda v: _as_on_cuda(v, dtype), inputs)
    if target.compiled:
        torch.compiler.reset()  # else torch runs a class's ninth net uncompiled, without an error
        placed = [torch.compile(model, mode="reduce-overhead") for model in placed]

    def run(model: Any) -> Run:
        return lambda: timed(lambda: call(model, inputs))

    threads_before = torch.get_num_threads()
    try:
        torch.set_num_threads(target.threads or threads_before)
        with evaluating(*placed):
            yield [run(model) for model in placed]
    finally:
        torch.set_num_threads(threads_before)


def batched(example_input: Any, batch: int) -> Any:
    """The example with its one sample repeated; as it is where it is a batch already."""
    if batch == batch_size(example_input):
        return example_input
    if batch_size(example_input) != 1:
        raise DataError(
            f"--batch {batch}: the example input must be of one sample or of that many, got "
            f"{batch_size(example_input)}."
        )
    return tree_map(
        lambda v: v.repeat(batch, *(1,) * (v.ndim - 1)) if isinstance(v, torch.Tensor) else v,
        example_input,
    )


def _as_on_cuda(value: Any, dtype: torch.dtype) -> Any:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    value = value.to(dtype)
    return value.to(memory_format=torch.channels_last) if value.ndim == 4 else value


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


def _summary(pairs: np.ndarray, target: Target, dtype: str) -> Speedup:
    def spread(values: np.ndarray) -> tuple[float, float, float]:
        p10, median, p90 = np.percentile(values, (10, 50, 90))
        return float(median), float(p10), float(p90)

    speedup, speedup_p10, speedup_p90 = spread(pairs[:, 0] / pairs[:, 1])
    return Speedup(
        runtime="onnxruntime" if target.runtime == "onnxruntime" else "torch",
        device=target.device,
        dtype=dtype,
        batch=target.batch,
        threads=target.threads or 0,
        runs=len(pairs),
        original=Latency(*spread(pairs[:, 0])),
        compressed=Latency(*spread(pairs[:, 1])),
        speedup=speedup,
        speedup_p10=speedup_p10,
        speedup_p90=speedup_p90,
    )
