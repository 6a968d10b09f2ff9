"""ONNX Runtime, and what has to be known of its CPU provider to time a layer by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from factorize.measure.framed_chain import frame_model, framed_model
from factorize.measure.onnx_chain import chain_model
from factorize.measure.runtimes.base import Chain, Run, Runtime, Target, register
from factorize.measure.runtimes.onnx_files import (
    CALLS,
    NOTHING,
    compared,
    copies_in_a_run,
    made_up,
)
from factorize.measure.runtimes.providers import fallback_remarks, provider_of, session_on
from factorize.measure.runtimes.running import batched, wall_ms
from factorize.spec import ConvSpec, Size
from factorize.tensor.call import onnx_feeds


class OnnxRuntime(Runtime):
    """Files as they are delivered, and chains as models of their own."""

    name = "onnxruntime"
    summary = "ONNX Runtime's CPU provider, or another of its providers"
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

    def placed(self, target: Target) -> str:  # noqa: D102
        return provider_of(target)

    def context(self) -> dict[str, Any]:  # noqa: D102
        import onnxruntime

        # A build with other providers is another package.
        return {**super().context(), self.package: onnxruntime.__version__}

    def overhead(self, target: Target) -> float:  # noqa: D102
        return _overhead(target)

    def copies(self, target: Target, dense: ConvSpec, size: Size) -> int:  # noqa: D102
        return copies_in_a_run(target, dense, size)

    def chain_runs(  # noqa: D102
        self, target: Target, chains: Sequence[Chain], size: Size
    ) -> list[Run | None]:
        dense = chains[0][0]
        copies, int8 = self.copies(target, dense, size), target.dtype == "int8"
        made, beside = chain_model, self.overhead(target)
        if target.on:
            made = framed_model
            beside = _beside(target, dense.in_channels, size) if dense.kernel else beside

        def runner(chain: Chain) -> Run | None:
            try:
                once = _call(made(chain, size, target.batch, copies, int8=int8), target)
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
            session = session_on(target, net)
            return partial(wall_ms, partial(session.run, None, onnx_feeds(session, inputs)))

        yield [runner(net) for net in nets]

    def remarks(self, target: Target, net: Any, example_input: Any) -> list[str]:  # noqa: D102
        if not target.on:
            return []
        inputs = batched(example_input, target.batch)
        session = session_on(target, net)
        found = session.run(None, onnx_feeds(session, inputs))
        return fallback_remarks(target, net, inputs) + compared(target, net, inputs, found)


@cache
def _overhead(target: Target) -> float:
    """Of a model that does next to nothing."""
    if target.on:
        return _beside(target, 1, (1, 1))
    once = _call(chain_model((NOTHING,), (1, 1), 1, int8=target.dtype == "int8"), target)
    return float(np.median([wall_ms(once) for _ in range(CALLS)]))


@cache
def _beside(target: Target, channels: int, size: Size) -> float:
    """Of the frame that chains for a layer are timed in."""
    once = _call(frame_model(channels, size, target.batch, int8=target.dtype == "int8"), target)
    return float(np.median([wall_ms(once) for _ in range(CALLS)]))


def _call(model: bytes, target: Target) -> partial[None]:
    """A call of a model whose inputs and outputs are bound: no copy to numpy is timed."""
    session = session_on(target, model)
    (given,) = session.get_inputs()
    binding = session.io_binding()
    binding.bind_cpu_input("x", made_up(tuple(given.shape), given.type[7:-1]))
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return partial(session.run_with_iobinding, binding)


register(OnnxRuntime())
