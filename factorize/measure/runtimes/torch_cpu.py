"""PyTorch on the CPU, in eager mode: layers are called one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from factorize.measure.onnx_chain import input_shape
from factorize.measure.runtimes.base import Chain, Run, Runtime, Target, register
from factorize.measure.runtimes.running import batched, threads_of, wall_ms
from factorize.measure.torch_chain import chain_module
from factorize.spec import Size
from factorize.tensor.call import call, evaluating, input_on, model_dtype, model_on


class TorchCpu(Runtime):
    """Nets as they are, in the dtype that they have."""

    name = "torch-cpu"
    summary = "PyTorch on the CPU, eager"
    package = "torch"
    reads = "module"
    reported = True

    def computes_in(self, target: Target, net: nn.Module, example_input: Any) -> str:  # noqa: D102
        del target, example_input
        return str(model_dtype(net)).removeprefix("torch.")

    # The caller's draws do not depend on what is in the cache.
    @torch.random.fork_rng(devices=())
    def chain_runs(  # noqa: D102
        self, target: Target, chains: Sequence[Chain], size: Size
    ) -> list[Run | None]:
        dtype = getattr(torch, target.dtype)
        x = torch.randn(input_shape(chains[0][0], size, target.batch)).to(dtype)

        def timed(once: Callable[[], Any]) -> float:
            with torch.no_grad(), threads_of(target):
                return wall_ms(once)

        def runner(chain: Chain) -> Run | None:
            once = partial(chain_module(chain).to(dtype), x)
            try:
                timed(once)
            except RuntimeError:
                return None
            return partial(timed, once)

        return [runner(chain) for chain in chains]

    @contextmanager
    def net_runs(  # noqa: D102
        self, target: Target, nets: Sequence[nn.Module], example_input: Any
    ) -> Iterator[list[Run]]:
        inputs = input_on(batched(example_input, target.batch), self.device)
        placed = [model_on(net, self.device) for net in nets]
        with threads_of(target), evaluating(*placed):
            yield [partial(wall_ms, partial(call, net, inputs)) for net in placed]


register(TorchCpu())
