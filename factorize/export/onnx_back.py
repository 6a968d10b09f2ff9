"""A compressed twin as an ONNX file again: checked, run and compared before it appears."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from factorize.errors import ExportError
from factorize.export.comparison import compare
from factorize.export.free_axes import FreeAxes, FreeAxis, axis_names, resized
from factorize.export.into_onnx import write_onnx
from factorize.export.plain_call import PlainCall
from factorize.export.publish import publishing
from factorize.export.to_onnx import OnnxCheck
from factorize.export.traces import STEPS, first_line
from factorize.onnx_graph import Twin
from factorize.onnx_graph.check_twin import alike
from factorize.tensor.call import batch_size, input_on, model_on, onnx_session
from factorize.types import Plan


def export_back(
    original: Twin, compressed: Twin, plan: Plan, example_input: Any, path: str | Path
) -> OnnxCheck:
    """Write the file that a twin was made of, with the plan's chains in it.

    It is there only if ``onnx.checker`` passes it, where it passed the original, and a process that
    has ONNX Runtime alone gets the twin's outputs from it: at the original's sizes, and at other
    ones where these are free.

    Parameters
    ----------
    path
        In a folder without files that have the names of the original's external data.

    Raises
    ------
    ExportError
        The runtime refuses it, or its outputs differ.
    """
    original, compressed = model_on(original, "cpu"), model_on(compressed, "cpu")  # type: ignore[assignment]
    with publishing(path, force=False) as file:
        check = _written(original, compressed, plan, example_input, file, path)
        for name in original.onnx_file.external:
            target = Path(path).parent / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (file.parent / name).replace(target)
    return check


def _written(
    original: Twin, compressed: Twin, plan: Plan, example_input: Any, file: Path, path: str | Path
) -> OnnxCheck:
    proto = write_onnx(original, compressed, plan, file)
    check_valid(original, file, path)
    tensors = _tensors(original, input_on(example_input, "cpu"))
    axes = _axes(original, tensors)
    called = PlainCall(compressed, tensors, by_name=True)
    max_abs, max_rel, tolerance = compare(
        called, [*_inputs(called, axes)], file, "onnxruntime", path, half=original.onnx_file.half,
        fed=lambda one: [*compressed.fed(tuple(one)).values()],
    )  # fmt: skip
    beside = sum((file.parent / name).stat().st_size for name in original.onnx_file.external)
    return OnnxCheck(
        nodes=dict(Counter(node.op_type for node in proto.graph.node).most_common()),
        max_abs=max_abs,
        max_rel=max_rel,
        tolerance=tolerance,
        bytes=file.stat().st_size + beside,
        opset=original.onnx_file.opset,
        free_axes=axes.names,
        input_sizes=axes.words(),
    )


def check_valid(original: Twin, file: Path, path: str | Path) -> None:
    """Raise ExportError for a file that is not valid ONNX, unless the original is not either."""
    import onnx

    try:
        onnx.checker.check_model(str(file))
    except Exception as error:  # onnx has dozens
        try:
            onnx.checker.check_model(str(original.onnx_file.path))
        except Exception:  # nor does the file that it was made of
            return
        raise ExportError(
            f"{path}: must be valid ONNX, as the original is, got {first_line(error)}. Not written."
        ) from error


def _inputs(called: PlainCall, axes: FreeAxes) -> Iterator[list[Tensor]]:
    """Random inputs: at the sizes of the example, with three samples, and at another size."""
    generator = torch.Generator().manual_seed(0)
    changes = [{"batch": 1}, {"batch": 3}] if "batch" in axes.names else [{}]
    changes += [{**changes[0], **axes.second()}] if axes.second() else []
    for changed in changes:
        yield resized([*called.tensors.values()], axes.sizes(changed), generator)


def _axes(twin: Twin, tensors: dict[str, Tensor]) -> FreeAxes:
    """The axes that the file leaves open, as far as it takes other sizes than the example's."""
    import sympy

    dims, axes = [], {}
    for value in twin.onnx_file.inputs:
        tensor, shape = tensors[value.name], []
        given = [*value.type.tensor_type.shape.dim]
        if value.name in twin.onnx_form.channels_last:
            given = [given[0], given[3], *given[1:3]]
        for axis, (dim, name) in enumerate(zip(given, axis_names(given), strict=True)):
            if dim.dim_value or not name:
                shape.append(tensor.shape[axis])
                continue
            symbol = sympy.Symbol(dim.dim_param or f"{value.name}_{axis}")
            shape.append(symbol)
            known = FreeAxis(name, str(symbol), tensor.shape[axis], 1, 2**62)
            axes.setdefault(str(symbol), known)
        dims.append(tuple(shape))
    open_axes = FreeAxes(tuple(axes.values()), tuple(dims))
    session = onnx_session(twin.onnx_file.path, 1)

    def takes(axis: FreeAxis) -> bool:
        """Whether the original runs at another size, and its twin alike."""
        shapes = open_axes.sizes({axis.name: axis.grown(1)})
        values = resized([*tensors.values()], shapes, torch.Generator().manual_seed(0))
        return alike(twin, dict(zip(tensors, values, strict=True)), session)

    found = []
    for axis in open_axes.axes:
        steps = (replace(axis, step=step) for step in (STEPS if axis.name != "batch" else (1,)))
        one = next((one for one in steps if takes(one)), None)
        found += [one] if one else []
    sizes = {axis.symbol: axis.size for axis in axes.values()}
    for axis in found:
        del sizes[axis.symbol]
    fixed = tuple(tuple(sizes.get(str(dim), dim) for dim in shape) for shape in dims)
    return FreeAxes(tuple(found), fixed)


def _tensors(twin: Twin, example_input: Any) -> dict[str, Tensor]:
    """An input of the twin by name, as many samples as the file wants."""
    names = [value.name for value in twin.onnx_file.inputs]
    if not isinstance(example_input, dict):
        values = example_input if isinstance(example_input, tuple) else (example_input,)
        example_input = dict(zip(names, values, strict=True))
    more = max(twin.onnx_form.batch, 1) // batch_size(example_input) or 1
    return {
        name: example_input[name].repeat(more, *(1,) * (example_input[name].ndim - 1))
        for name in names
    }
