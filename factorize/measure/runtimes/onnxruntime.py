"""ONNX Runtime's CPU provider, and what has to be known of it to time a layer by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from factorize.measure.onnx_chain import chain_model
from factorize.measure.runtimes.base import Chain, Run, Runtime, Target, register
from factorize.measure.runtimes.running import batched, wall_ms
from factorize.spec import ConvSpec, Size
from factorize.tensor.call import onnx_feeds, onnx_session

NOTHING = ConvSpec("", "conv2d", 1, 1, (1, 1), (1, 1), (0, 0), (1, 1), bias=False)
_CALLS = 200
_LONG_RUN = 5e8  # MACs: some milliseconds
_MACS_PER_WEIGHT = 40  # that take as long as reading it from memory
_MOST_COPIES = 16


class OnnxRuntime(Runtime):
    """Files as they are delivered, and chains as models of their own."""

    name = "onnxruntime"
    summary = "ONNX Runtime's CPU provider"
    package = "onnxruntime"
    reads = "onnx"
    dtypes = ("float32", "int8")
    reported = True

    def computes_in(self, target: Target, net: Any, example_input: Any) -> str:  # noqa: D102
        del net
        if target.dtype != "float32":
            return target.dtype
        tensors = [v for v in tree_leaves(example_input) if isinstance(v, torch.Tensor)]
        dtype = next((v.dtype for v in tensors if v.is_floating_point()), torch.float32)
        return str(dtype).removeprefix("torch.")

    def overhead(self, target: Target) -> float:  # noqa: D102
        return _overhead(target)

    def copies(self, target: Target, dense: ConvSpec, size: Size) -> int:
        """So many that a run is as long as that of a net's larger part.

        In a short run the threads of the runtime take most of the time to wake up.
        """
        macs = target.batch * dense.params * prod(dense.output_size(size))
        work = max(macs, _MACS_PER_WEIGHT * dense.params, 1)
        return int(min(max(_LONG_RUN / work, 1), _MOST_COPIES))

    def chain_runs(  # noqa: D102
        self, target: Target, chains: Sequence[Chain], size: Size
    ) -> list[Run | None]:
        beside = self.overhead(target)
        copies, int8 = self.copies(target, chains[0][0], size), target.dtype == "int8"

        def runner(chain: Chain) -> Run | None:
            try:
                once = _call(chain_model(chain, size, target.batch, copies, int8=int8), target)
                once()
            except Exception:  # the runtime has dozens: whatever it is, the chain cannot be run
                return None
            return lambda: max(wall_ms(once) - beside, 0.5 * beside) / copies

        return [runner(chain) for chain in chains]

    @contextmanager
    def net_runs(  # noqa: D102
        self, target: Target, nets: Sequence[str | Path | bytes], example_input: Any
    ) -> Iterator[list[Run]]:
        inputs = batched(example_input, target.batch)

        def runner(net: str | Path | bytes) -> Run:
            session = onnx_session(net, target.threads)
            return partial(wall_ms, partial(session.run, None, onnx_feeds(session, inputs)))

        yield [runner(net) for net in nets]


@cache
def _overhead(target: Target) -> float:
    """Of a model that does next to nothing."""
    once = _call(chain_model((NOTHING,), (1, 1), 1, int8=target.dtype == "int8"), target)
    return float(np.median([wall_ms(once) for _ in range(_CALLS)]))


def _call(model: bytes, target: Target) -> partial[None]:
    """A call of a model whose inputs and outputs are bound: no copy to numpy is timed."""
    session = onnx_session(model, target.threads)
    (given,), draw = session.get_inputs(), np.random.default_rng(0)
    x = draw.standard_normal(given.shape).astype(np.float32)
    if "uint8" in given.type:
        x = draw.integers(0, 256, given.shape, np.uint8)
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return partial(session.run_with_iobinding, binding)


register(OnnxRuntime())
