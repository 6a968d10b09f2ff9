"""PyTorch on a CUDA device: channels_last, in half precision too, eager or compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from factorize.measure.environment import package_version
from factorize.measure.onnx_chain import input_shape
from factorize.measure.runtimes.base import Chain, Run, Runtime, Target, register
from factorize.measure.runtimes.running import batched, threads_of
from factorize.measure.torch_chain import chain_module
from factorize.spec import Size
from factorize.tensor.call import call, evaluating, input_on, laid_out_, model_on


class Cuda(Runtime):
    """Nets in the target's dtype, timed by the device's own clock."""

    name = "cuda"
    summary = "PyTorch on a CUDA device, channels_last, eager or compiled"
    package = "torch"
    reads = "module"
    dtypes = ("float32", "bfloat16", "float16")
    compiles = True
    device = "cuda"
    reported = True

    def missing(self) -> str | None:  # noqa: D102
        if torch.cuda.is_available():
            return None
        return "needs a CUDA device that torch can use, found none"

    def context(self) -> dict[str, Any]:  # noqa: D102
        return {
            "device": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "torch": package_version("torch"),
        }

    def describe(self, target: Target) -> str:  # noqa: D102
        return target.dtype + ", compiled" * target.compiled

    # The caller's draws do not depend on what is in the cache.
    @torch.random.fork_rng(devices=())
    def chain_runs(  # noqa: D102
        self, target: Target, chains: Sequence[Chain], size: Size
    ) -> list[Run | None]:
        dtype = getattr(torch, target.dtype)
        x = torch.randn(input_shape(chains[0][0], size, target.batch))
        x = _input_as(x.to(self.device), dtype)

        def timed(once: Callable[[], Any]) -> float:
            with torch.no_grad():
                return event_ms(once)

        def runner(chain: Chain) -> Run | None:
            module = laid_out_(chain_module(chain).to(self.device, dtype), torch.channels_last)
            try:
                once = captured(module, x) if target.compiled else partial(module, x)
                timed(once)
            except RuntimeError:
                return None
            return partial(timed, once)

        return [runner(chain) for chain in chains]

    @contextmanager
    def net_runs(  # noqa: D102
        self, target: Target, nets: Sequence[nn.Module], example_input: Any
    ) -> Iterator[list[Run]]:
        dtype = getattr(torch, target.dtype)
        inputs = input_on(batched(example_input, target.batch), self.device)
        inputs = tree_map(lambda v: _input_as(v, dtype), inputs)
        placed: list[Any] = [
            laid_out_(copy.deepcopy(model_on(net, self.device)).to(dtype), torch.channels_last)
            for net in nets
        ]
        if target.compiled:
            torch.compiler.reset()  # else torch runs a class's ninth net uncompiled, without a word
            placed = [torch.compile(net, mode="reduce-overhead") for net in placed]
        with threads_of(target), evaluating(*placed):
            yield [partial(event_ms, partial(call, net, inputs)) for net in placed]


def event_ms(call: Callable[[], Any]) -> float:
    """Milliseconds of one call on the device."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def captured(module: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    """The module as a CUDA graph: what a compiled model runs, without compiling each chain."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(3):  # kernels are chosen before the capture
            module(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        module(x)
    return graph.replay


def _input_as(value: Any, dtype: torch.dtype) -> Any:
    """A floating tensor in a dtype, of four axes in channels_last; anything else as it is."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    value = value.to(dtype)
    return value.to(memory_format=torch.channels_last) if value.ndim == 4 else value


register(Cuda())
