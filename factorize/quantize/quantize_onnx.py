"""A float ONNX file to an int8 one: rounded, written, run and compared before it appears."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from factorize.errors import ExportError
from factorize.export.onnx_back import check_valid
from factorize.export.publish import publishing
from factorize.onnx_graph import Twin
from factorize.onnx_graph.check_twin import arrays
from factorize.quantize.places import places_of
from factorize.quantize.rounded_net import RoundedNet, round_net
from factorize.quantize.saturation import largest_code
from factorize.quantize.source import IMAGES, batches_of, twin_and_batches
from factorize.quantize.spare import Judge, Spare
from factorize.quantize.write import write_rounded
from factorize.system.imports import brief
from factorize.tensor.call import batch_size, evaluating, onnx_session, rows_of
from factorize.types import Progress

_COMPARED = 8  # images
_SPREAD, _RESOLVED = 2.0, 1e-3  # one code that differs may turn others behind it


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
    held_out
        What the outputs lose to the float net's on held-out images, see `Spare`; None where that
        was not measured.
    alone
        By layer that stayed in float because it loses too much: what the net loses by it and those
        in a row with it alone.
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
    held_out: float | None
    alone: dict[str, float]
    largest: int
    bytes: int
    grids: dict[str, tuple[float, int]]
    scales: dict[str, list[float]]


def quantize_onnx(
    source: str | Path,
    path: str | Path,
    batches: Iterable[Any],
    *,
    exclude: Iterable[str] | Mapping[str, str] = (),
    spare: Spare | None = None,
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
        Names of layers that stay in float; a mapping has the reason of each.
    spare
        Held-out images: where the net loses too much on them, so do some layers, which then stay in
        float.
    images, memory
        How many samples are used at most, and bytes of activations; fewer where the net is large.

    Raises
    ------
    ExportError
        The file cannot be quantized, or what was made of it does not do what was simulated.
    OutputError
        If `path` exists or cannot be written.
    """
    with publishing(path, force) as file:
        twin, given = twin_and_batches(Path(source), batches, images=images, memory=memory)
        left = {**exclude} if isinstance(exclude, Mapping) else dict.fromkeys(exclude, "excluded")
        judge = spare and Judge(spare, twin, batches_of(twin, spare.batches, images, memory))
        while True:
            made = _rounded(source, twin, left, given, seed, progress)
            nodes, difference, simulated = _written(made, twin, given[0], file, path)
            more = judge.choose(made, lambda some: _run(file, twin, some)) if judge else ()
            if not (judge and more):
                break
            left |= dict.fromkeys(more, judge.told)
        if judge and judge.alone:
            made.places.left |= dict.fromkeys(judge.alone, judge.told)
        return Int8Check(
            losses={name: layer.loss for name, layer in made.layers.items()},
            left=made.places.left,
            nodes=nodes,
            images=sum(map(batch_size, given)),
            difference=difference,
            simulated=simulated,
            held_out=judge.losses[-1] if judge and judge.losses else None,
            alone=judge.alone if judge else {},
            largest=largest_code(),
            bytes=file.stat().st_size,
            grids={name: (one.scale, one.zero) for name, one in made.grids.items()},
            scales={name: one.scales.tolist() for name, one in made.layers.items()},
        )


def _rounded(
    source: str | Path, twin: Twin, left: Mapping[str, str], given: list[dict[str, Tensor]],
    seed: int, progress: Progress | None,
) -> RoundedNet:  # fmt: skip
    """The rounded net; some layers stay in float."""
    twin = copy.deepcopy(twin)
    places = places_of(twin, exclude=left)
    if not places.layers:
        told = "".join(f" ({name}: {why})" for name, why in [*places.left.items()][:1])
        raise ExportError(
            f"{source}: must have layers that can be computed in integers, found none{told}. "
            "Leave --int8 out."
        )

    def tell(done: int) -> None:
        if progress:
            progress("int8", done, len(places.layers), {})

    return round_net(twin, places, given, largest=largest_code(), seed=seed, progress=tell)


def _written(
    made: RoundedNet, twin: Twin, given: dict[str, Tensor], file: Path, path: str | Path
) -> tuple[dict[str, int], float, float]:
    """Write, run and compare a rounded net: its nodes by operator, and how far it is off."""
    import onnx

    proto = write_rounded(made)
    some = given if twin.onnx_form.batch else rows_of(given, slice(_COMPARED))
    try:
        onnx.save(proto, file)
        got = _run(file, twin, some)
    except Exception as error:  # onnx and its runtime have dozens
        raise ExportError(
            f"{path}: the int8 net must be one that ONNX Runtime runs, got {brief(error)}. "
            "Not written."
        ) from error
    check_valid(twin, file, path)
    difference, simulated = _compared(twin, made, some, got)
    if difference > _SPREAD * simulated + _RESOLVED or difference == inf:
        raise ExportError(
            f"{path}: must be as close to the float net as its simulation is, "
            f"{simulated:.3g}, got {difference:.3g}. Not written."
        )
    nodes = Counter(node.op_type for node in proto.graph.node)
    return dict(nodes.most_common()), difference, simulated


def _run(file: Path, twin: Twin, given: dict[str, Tensor]) -> list[Tensor]:
    session = onnx_session(file)
    return [torch.from_numpy(array) for array in session.run(None, arrays(twin, given))]


def _compared(
    twin: Twin, made: RoundedNet, given: dict[str, Tensor], got: list[Tensor]
) -> tuple[float, float]:
    """How far file and simulation are from the float net, of the output that is furthest."""
    names = [value.name for value in twin.onnx_file.proto.graph.output]
    with evaluating(twin, made.twin):
        exact, rough = twin.values(given, names), made.values(given, names)
    pairs = [
        (_apart(one, exact[name]), _apart(rough[name], exact[name]))
        for name, one in zip(names, got, strict=True)
        if exact[name].is_floating_point() and exact[name].numel()
    ]
    return max(pairs, default=(0.0, 0.0))


def _apart(value: Tensor, wanted: Tensor) -> float:
    floor = torch.finfo(torch.float32).tiny
    apart = float((value - wanted).norm() / wanted.norm().clamp_min(floor))
    return apart if isfinite(apart) else inf
