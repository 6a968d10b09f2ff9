"""A float ONNX file to an int8 one: rounded, written, run and compared before it appears."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from factorize.errors import ExportError
from factorize.export.publish import publishing
from factorize.onnx_graph import Twin, make_twin, read_onnx
from factorize.quantize.places import places_of
from factorize.quantize.rounded_net import RoundedNet, round_net
from factorize.quantize.saturation import largest_code
from factorize.quantize.write import write_rounded
from factorize.system.imports import brief
from factorize.tensor.call import batch_size, evaluating, onnx_session, rows_of
from factorize.types import Progress

OPSET = 13
"""The first whose DequantizeLinear knows scales by channel."""

IMAGES, FEWEST = 256, 16
_MACS = 1e11  # of all images together, beyond the fewest
_COMPARED = 8  # images
_SPREAD, _RESOLVED = 1.5, 1e-3


@dataclass(frozen=True)
class Int8Check:
    """What is known of an int8 file.

    Attributes
    ----------
    losses
        By layer in integers: squared difference of its outputs from the float net's on the
        calibration images, as a share of their variance; all layers before it are rounded too.
    left
        Layers that stayed in float, each with its reason.
    nodes
        Number of nodes by operator.
    images
        That ranges and weights were fitted to.
    difference, simulated
        ||y - y_float|| / ||y_float|| of the output for which it is largest: of the file in ONNX
        Runtime, and of a simulation of the same rounding in floating-point numbers.
    largest
        Code of a weight.
    grids
        By value that is rounded: scale, and code of 0.
    scales
        By layer: those of its output channels' weights.
    """

    losses: dict[str, float]
    left: dict[str, str]
    nodes: dict[str, int]
    images: int
    difference: float
    simulated: float
    largest: int
    bytes: int
    grids: dict[str, tuple[float, int]]
    scales: dict[str, list[float]]


def quantize_onnx(
    source: str | Path,
    path: str | Path,
    batches: Iterable[Any],
    *,
    exclude: Iterable[str] = (),
    images: int = IMAGES,
    memory: float = 2e9,
    force: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Int8Check:
    """Write the int8 form of a float ONNX file: activations uint8, weights int8 by output channel.

    Where nothing lies between two layers, as in a chain, scales are moved between them first. Then
    layer after layer is rounded so that its outputs, for the inputs that the rounded layers before
    it give, are close to those of the float net; biases make up for the means.

    Parameters
    ----------
    source
        Of opset 13 or later, in float32.
    batches
        Inputs as the net takes them (an image tensor, a tuple, a dict by name); labels are left out
        before.
    exclude
        Names of layers that stay in float.
    images, memory
        How many samples are used at most, and bytes of activations; fewer where the net is large.

    Raises
    ------
    ExportError
        The file cannot be quantized, or what was made of it does not do what was simulated.
    OutputError
        If `path` exists or cannot be written.
    """
    import onnx

    source = Path(source)
    twin = _twin(source)
    places = places_of(twin, exclude=exclude)
    if not places.layers:
        raise ExportError(
            f"{source}: must have layers that can be computed in integers, found none. Leave "
            "--int8 out."
        )
    given = _batches(twin, batches, images, memory)
    largest = largest_code()
    done, count = Counter[str](), len(places.layers)

    def tell(_: str) -> None:
        done["layers"] += 1
        if progress:
            progress("int8", done["layers"], count, {})

    made = round_net(twin, places, given, largest=largest, seed=seed, progress=tell)
    with publishing(path, force) as file:
        proto = write_rounded(made)
        try:
            onnx.checker.check_model(proto)
            onnx.save(proto, file)
            got = _run(file, twin, given[0])
        except Exception as error:  # onnx and its runtime have dozens
            raise ExportError(
                f"{path}: the int8 net must be one that ONNX Runtime runs, got {brief(error)}. "
                "Not written."
            ) from error
        difference, simulated = _compared(twin, made, given[0], got)
        if not difference <= _SPREAD * simulated + _RESOLVED:  # so that NaN fails too
            raise ExportError(
                f"{path}: must be as close to the float net as its simulation is, "
                f"{simulated:.3g}, got {difference:.3g}. Not written."
            )
        return Int8Check(
            losses={name: layer.loss for name, layer in made.layers.items()},
            left=places.left,
            nodes=dict(Counter(node.op_type for node in proto.graph.node).most_common()),
            images=sum(batch_size(one) for one in given),
            difference=difference,
            simulated=simulated,
            largest=largest,
            bytes=file.stat().st_size,
            grids={name: (one.scale, one.zero) for name, one in made.grids.items()},
            scales={name: one.scales.tolist() for name, one in made.layers.items()},
        )


def _twin(source: Path) -> Twin:
    file = read_onnx(source)
    if file.half or file.opset < OPSET:
        what = "float16" if file.half else f"opset {file.opset}"
        raise ExportError(
            f"{source}: to become int8 it must be float32, of opset {OPSET} or later, got {what}. "
            "Export it so, or leave --int8 out."
        )
    twin, _ = make_twin(file)
    first = file.inputs[0].type.tensor_type.shape.dim
    twin.onnx_form.one_by_one = bool(first and first[0].dim_value == 1)
    return twin


def _batches(
    twin: Twin, batches: Iterable[Any], images: int, memory: float
) -> list[dict[str, Tensor]]:
    """As many samples as there are, are wanted and fit, by the names of the file's inputs."""
    found: list[dict[str, Tensor]] = []
    most, have = images, 0
    for batch in batches:
        given = _named(twin, batch)
        if not found:
            first = rows_of(given, slice(1))
            most = min(images, _most(twin, first, memory))
        size = 1 if twin.onnx_form.one_by_one else batch_size(given)
        for start in range(0, batch_size(given), size):
            one = rows_of(given, slice(start, start + min(size, most - have)))
            found.append(one)
            have += batch_size(one)
            if have >= most:
                return found
    if not found:
        raise ExportError("--int8: needs images to find the ranges of, got none. Give --data.")
    return found


def _most(twin: Twin, one: dict[str, Tensor], memory: float) -> int:
    """How many samples memory and time are enough for."""
    largest, macs = 0, 0
    with evaluating(twin):
        values = twin.begin(one)
        constants = {id(v) for v in twin.onnx_constants.buffers()}
        for step in twin.onnx_steps:
            values.update(twin.compute(step, values))
            held = [v for v in values.values() if isinstance(v, Tensor) and id(v) not in constants]
            largest = max(largest, sum(v.nbytes for v in held))
            if step.layer is not None:
                weight = getattr(twin.module_of(step), "weight", None)
                made = values[step.makes[0]]
                if isinstance(weight, Tensor) and weight.ndim > 1:
                    macs += made.numel() // weight.shape[0] * weight.numel()
            for name in step.last:
                values.pop(name, None)
    by_memory = int(memory / max(2 * largest, 1))
    return max(min(by_memory, max(int(_MACS / max(macs, 1)), FEWEST)), 1)


def _named(twin: Twin, inputs: Any) -> dict[str, Tensor]:
    names = [value.name for value in twin.onnx_file.inputs]
    if isinstance(inputs, Mapping) and set(names) <= set(inputs):
        return {name: inputs[name].float().cpu() for name in names}
    tensors = [v for v in tree_leaves(inputs) if isinstance(v, Tensor)]
    return {name: v.cpu() for name, v in zip(names, tensors, strict=True)}


def _run(file: Path, twin: Twin, given: dict[str, Tensor]) -> list[Tensor]:
    session = onnx_session(file)
    fed = {name: v.numpy() for name, v in twin.fed(_few(given)).items()}
    return [torch.from_numpy(array) for array in session.run(None, fed)]


def _few(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return rows_of(given, slice(_COMPARED))


def _compared(
    twin: Twin, made: RoundedNet, given: dict[str, Tensor], got: list[Tensor]
) -> tuple[float, float]:
    """How far file and simulation are from the float net, of the output that is furthest."""
    names = [value.name for value in twin.onnx_file.proto.graph.output]
    with evaluating(twin, made.twin):
        exact = twin.values(_few(given), names)
        rough = made.values(_few(given), names)
    pairs = [
        (_apart(one, exact[name]), _apart(rough[name], exact[name]))
        for name, one in zip(names, got, strict=True)
        if exact[name].is_floating_point() and exact[name].numel()
    ]
    return max(pairs, default=(0.0, 0.0))


def _apart(value: Tensor, wanted: Tensor) -> float:
    floor = torch.finfo(torch.float32).tiny
    return float((value - wanted).norm() / wanted.norm().clamp_min(floor))
