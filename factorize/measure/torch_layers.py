"""Convolutions in torch with made-up weights, for timing on the CPU and on CUDA."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from factorize.measure.onnx_chain import input_shape
from factorize.measure.target import Target
from factorize.spec import ConvSpec, Size

_CONVS: dict[str, Any] = {
    "conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d,
    "conv_transpose1d": nn.ConvTranspose1d, "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}  # fmt: skip


@torch.random.fork_rng(devices=())  # the caller's draws do not depend on what is in the cache
def torch_runners(
    target: Target, chains: Sequence[tuple[ConvSpec, ...]], size: Size
) -> list[Callable[[], float] | None]:
    """A function per chain that runs it once and returns milliseconds; None: refused."""
    dtype = getattr(torch, target.dtype)
    x = torch.randn(input_shape(chains[0][0], size, target.batch))
    x = x.to(target.device, dtype, memory_format=_layout(target, x))

    def runner(chain: tuple[ConvSpec, ...]) -> Callable[[], float] | None:
        module = nn.Sequential(*(conv(stage) for stage in chain)).eval().requires_grad_(False)
        module = module.to(target.device, dtype)
        module = module.to(memory_format=_layout(target, x))  # type: ignore[call-overload]
        try:
            call: Callable[[], Any] = captured(module, x) if target.compiled else lambda: module(x)
            timed(call, target)
        except RuntimeError:
            return None
        return lambda: timed(call, target)

    return [runner(chain) for chain in chains]


def conv(spec: ConvSpec) -> nn.Module:
    """A layer of that shape."""
    if spec.kind == "channel_shuffle":
        return nn.ChannelShuffle(spec.groups)
    if not spec.kernel:
        return nn.Linear(spec.in_channels, spec.out_channels, spec.bias)
    more = {"output_padding": spec.output_padding} if spec.transposed else {}
    return _CONVS[spec.kind](
        spec.in_channels, spec.out_channels, spec.kernel, spec.stride, spec.padding,
        dilation=spec.dilation, groups=spec.groups, bias=spec.bias, padding_mode=spec.padding_mode,
        **more,
    )  # fmt: skip


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


def timed(call: Callable[[], Any], target: Target) -> float:
    """Milliseconds of one call, with the target's threads."""
    with torch.no_grad():
        if target.device == "cpu":
            with _threads(target):
                start = time.perf_counter()
                call()
                return 1e3 * (time.perf_counter() - start)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)


@contextmanager
def _threads(target: Target) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(target.threads or before)
        yield
    finally:
        torch.set_num_threads(before)


def _layout(target: Target, x: torch.Tensor) -> torch.memory_format:
    if target.device == "cuda" and x.ndim == 4:
        return torch.channels_last
    return torch.preserve_format
