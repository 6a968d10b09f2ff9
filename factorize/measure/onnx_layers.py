"""Chains of convolutions in ONNX Runtime, ready to be timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any

import numpy as np

from factorize.measure.onnx_chain import chain_model, input_shape
from factorize.measure.target import Target
from factorize.spec import ConvSpec, Size
from factorize.tensor.call import onnx_session

NOTHING = ConvSpec("", "conv2d", 1, 1, (1, 1), (1, 1), (0, 0), (1, 1), bias=False)
_CALLS = 200
_LONG_RUN = 5e8  # MACs: some milliseconds
_MACS_PER_WEIGHT = 40  # that take as long as reading it from memory
_MOST_COPIES = 16


def onnx_runners(
    target: Target, chains: Sequence[tuple[ConvSpec, ...]], size: Size
) -> list[Callable[[], float] | None]:
    """A function per chain that runs it once and returns milliseconds; None: refused.

    The first chain is the dense layer.
    """
    shape = input_shape(chains[0][0], size, target.batch)
    x = np.random.default_rng(0).standard_normal(shape)
    x, beside = x.astype(np.float32), overhead(target)
    copies = copies_of(chains[0][0], size, target.batch)

    def runner(chain: tuple[ConvSpec, ...]) -> Callable[[], float] | None:
        try:
            model = chain_model(chain, size, target.batch, copies)
            session = onnx_session(model, target.threads)
            binding = _bound(session, x)
            session.run_with_iobinding(binding)
        except Exception:  # the runtime has dozens: whatever it is, the chain cannot be run
            return None
        return lambda: max(_timed(session, binding) - beside, 0.5 * beside) / copies

    return [runner(chain) for chain in chains]


def copies_of(dense: ConvSpec, size: Size, batch: int) -> int:
    """How many copies of a layer make a run as long as that of a net's larger part.

    In a short run the threads of the runtime take most of the time to wake up.
    """
    macs = batch * dense.params * prod(dense.output_size(size))
    work = max(macs, _MACS_PER_WEIGHT * dense.params, 1)
    return int(min(max(_LONG_RUN / work, 1), _MOST_COPIES))


@cache
def overhead(target: Target) -> float:
    """Milliseconds of a call beside its work: a net pays that once, not for each layer."""
    if target.runtime != "onnxruntime":  # eager layers are called one by one
        return 0.0
    session = onnx_session(chain_model((NOTHING,), (1, 1), 1), target.threads)
    binding = _bound(session, np.ones((1, 1, 1, 1), np.float32))
    return float(np.median([_timed(session, binding) for _ in range(_CALLS)]))


def _bound(session: Any, x: np.ndarray) -> Any:
    """A binding of inputs and outputs, so that no copy of an output to numpy is timed."""
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return binding


def _timed(session: Any, binding: Any) -> float:
    start = time.perf_counter()
    session.run_with_iobinding(binding)
    return 1e3 * (time.perf_counter() - start)
