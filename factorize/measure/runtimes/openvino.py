"""OpenVINO: nets of fixed sizes, as they are deployed there, and chains between other nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from factorize.errors import DeviceError, ExportError
from factorize.measure.environment import package_version
from factorize.measure.framed_chain import frame_model, framed_model
from factorize.measure.runtimes.base import Chain, Run, Runtime, Target, register
from factorize.measure.runtimes.onnx_files import (
    CALLS,
    compared,
    copies_in_a_run,
    made_up,
)
from factorize.measure.runtimes.running import batched, wall_ms
from factorize.spec import ConvSpec, Size
from factorize.system.imports import brief
from factorize.tensor.call import named_feeds

CPU = "CPU"
PRECISIONS = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16", "int8": "INT8"}
HINTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int8": "f32"}


class OpenVino(Runtime):
    """ONNX files as they are delivered, and chains as models of their own.

    Options are properties of the device: ``PERFORMANCE_HINT=THROUGHPUT`` times as many requests at
    once as the device likes, per request.
    """

    name = "openvino"
    summary = "OpenVINO on a CPU, or another of its devices"
    package = "openvino"
    reads = "onnx"
    dtypes = tuple(PRECISIONS)

    def missing(self) -> str | None:  # noqa: D102
        if package_version(self.package):
            return None
        return "needs the package openvino, found none: pip install 'factorize[openvino]'"

    def placed(self, target: Target) -> str:  # noqa: D102
        here, device = _core().available_devices, target.on or CPU
        if device.partition(".")[0] not in {one.partition(".")[0] for one in here}:
            raise DeviceError(
                f"target {self.name}: the device must be one of {', '.join(here)}, got {device}. "
                "Choose one of them, or install its driver."
            )
        able = _core().get_property(device, "OPTIMIZATION_CAPABILITIES")
        if PRECISIONS[target.dtype] not in able:
            has = [name for name, one in PRECISIONS.items() if one in able]
            raise DeviceError(
                f"target {self.name}: {device} computes in {', '.join(has)}, got {target.dtype}. "
                "Choose one of them."
            )
        known = set(_core().get_property(device, "SUPPORTED_PROPERTIES"))
        for option in target.options:
            if option.partition("=")[0] not in known:
                raise DeviceError(
                    f"target {self.name}: {device} has no property {option.partition('=')[0]}. "
                    f"Choose of {', '.join(sorted(known))}."
                )
        return "" if device == CPU else device

    def context(self) -> dict[str, Any]:  # noqa: D102
        core = _core()
        devices = {
            one: core.get_property(one, "FULL_DEVICE_NAME")
            for one in core.available_devices
            if one != CPU
        }
        return {**super().context(), **({"devices": devices} if devices else {})}

    def copies(self, target: Target, dense: ConvSpec, size: Size) -> int:  # noqa: D102
        return copies_in_a_run(target, dense, size)

    def overhead(self, target: Target) -> float:  # noqa: D102
        return _beside(target, 1, (1, 1))

    def chain_runs(  # noqa: D102
        self, target: Target, chains: Sequence[Chain], size: Size
    ) -> list[Run | None]:
        dense = chains[0][0]
        copies, int8 = self.copies(target, dense, size), target.dtype == "int8"
        beside = _beside(target, dense.in_channels, size) if dense.kernel else self.overhead(target)

        def runner(chain: Chain) -> Run | None:
            try:
                once = _call(framed_model(chain, size, target.batch, copies, int8=int8), target)
                once()
            except Exception:  # whatever it is, the chain cannot be run
                return None
            return lambda: max(once() - beside, 0.5 * beside) / copies

        return [runner(chain) for chain in chains]

    @contextmanager
    def net_runs(  # noqa: D102
        self, target: Target, nets: Sequence[str | Path | bytes], example_input: Any
    ) -> Iterator[list[Run]]:
        inputs = batched(example_input, target.batch)
        yield [_call(net, target, inputs) for net in nets]

    def remarks(self, target: Target, net: Any, example_input: Any) -> list[str]:  # noqa: D102
        inputs = batched(example_input, target.batch)
        compiled, feeds = _compiled(net, target, inputs)
        found = compiled.create_infer_request().infer(feeds)
        told = compared(target, net, inputs, [found[port] for port in compiled.outputs])
        used = None if target.on else compiled.get_property("INFERENCE_NUM_THREADS")
        if used not in (None, target.threads):  # such as one for each core that is not virtual
            told.append(f"OpenVINO uses {used} threads of the {target.threads} asked for")
        return told


@cache
def _core() -> Any:
    import openvino

    return openvino.Core()


@cache
def _beside(target: Target, channels: int, size: Size) -> float:
    """Of the frame that chains for a layer are timed in."""
    once = _call(frame_model(channels, size, target.batch, int8=target.dtype == "int8"), target)
    return float(np.median([once() for _ in range(CALLS)]))


def _call(net: str | Path | bytes, target: Target, inputs: Any = None) -> Run:
    """A run of a net, or of a chain: of as many requests at once as the target's hint wants."""
    compiled, feeds = _compiled(net, target, inputs)
    count = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    requests = [compiled.create_infer_request() for _ in range(count)]
    for request in requests:
        request.infer(feeds)  # keeps what it was given

    def all_at_once() -> None:
        for request in requests:
            request.start_async()
        for request in requests:
            request.wait()

    return lambda: wall_ms(all_at_once) / count


def _compiled(net: str | Path | bytes, target: Target, inputs: Any) -> tuple[Any, list[Any]]:
    """A net on its device, of the sizes of its inputs, and these; made-up ones where it has sizes.

    Raises
    ------
    ExportError
        The device does not take it.
    """
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": HINTS[target.dtype],
        **dict(option.split("=", 1) for option in target.options),
    }
    if not target.on:
        settings["INFERENCE_NUM_THREADS"] = str(target.threads)
    try:
        model = _core().read_model(net if isinstance(net, bytes) else str(net))
        if inputs is None:
            feeds = [
                made_up(tuple(port.shape), port.element_type.to_dtype().name)
                for port in model.inputs
            ]
        else:
            feeds = [*named_feeds([port.any_name for port in model.inputs], inputs).values()]
            model.reshape({
                port.any_name: list(value.shape)
                for port, value in zip(model.inputs, feeds, strict=True)
            })  # fmt: skip
        return _core().compile_model(model, target.on or CPU, settings), feeds
    except RuntimeError as error:
        name = "the net" if isinstance(net, bytes) else Path(net).name
        raise ExportError(f"{name}: cannot be run on {target}: {brief(error)}") from error


register(OpenVino())
