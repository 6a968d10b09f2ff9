"""The float ONNX file that becomes int8, as a twin, and inputs as it takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from factorize.errors import ExportError, ModelLoadError
from factorize.onnx_graph import OnnxFile, Twin, check_twin, make_twin, read_onnx
from factorize.tensor.call import batch_size, evaluating, rows_of

OPSET = 13
"""The first whose DequantizeLinear knows scales by channel."""

IMAGES, FEWEST = 256, 16
_MACS = 1e11  # of all images together, beyond the fewest


def unsuited(file: OnnxFile) -> str | None:
    """What a file is that cannot become int8; None where it can."""
    from onnx import TensorProto

    if file.half:
        return "float16"
    if any(value.type.tensor_type.elem_type == TensorProto.DOUBLE for value in file.inputs):
        return "float64"
    return f"opset {file.opset}" if file.opset < OPSET else None


def twin_and_batches(
    source: Path, batches: Iterable[Any], *, images: int = IMAGES, memory: float = 2e9
) -> tuple[Twin, list[dict[str, Tensor]]]:
    """The twin of a file, and as many samples as there are, are wanted and fit, by input.

    Raises
    ------
    ExportError
        The file cannot become int8, its twin does not compute what it does, or there is no sample.
    """
    try:
        file = read_onnx(source)
        if (what := unsuited(file)) is not None:
            raise ExportError(
                f"{source}: to become int8 it must be float32, of opset {OPSET} or later, got "
                f"{what}. Export it so, or leave --int8 out."
            )
        twin, _ = make_twin(file)
        found = batches_of(twin, batches, images, memory)
    except ModelLoadError as error:
        raise ExportError(str(error)) from error
    if not found:
        raise ExportError("--int8: needs images to find the ranges of, got none. Give --data.")
    return twin, found


def batches_of(
    twin: Twin, batches: Iterable[Any], images: int, memory: float
) -> list[dict[str, Tensor]]:
    """As many samples as there are, are wanted and fit, by input."""
    found: list[dict[str, Tensor]] = []
    most, have = images, 0
    for batch in batches:
        given = named_inputs(twin, batch)
        if not batch_size(given):
            continue
        if not found:
            first = rows_of(given, slice(1))
            check_twin(twin, first)
            most = min(images, _most(twin, first, memory))
        size = 1 if twin.onnx_form.one_by_one else twin.onnx_form.batch or batch_size(given)
        for start in range(0, batch_size(given), size):
            one = rows_of(given, slice(start, start + size))
            if not twin.onnx_form.batch:
                one = rows_of(one, slice(most - have))
            found.append(_whole(one, twin.onnx_form.batch))
            have += batch_size(one)
            if have >= most:
                return found
    return found


def _whole(given: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Of the fixed size of a batch, where there is one: samples come again until it is full."""
    rows = torch.arange(size) % batch_size(given) if size else slice(None)
    return {name: v[rows] for name, v in given.items()}


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


def named_inputs(twin: Twin, inputs: Any) -> dict[str, Tensor]:
    """Inputs by the names of the file's, of its dtypes."""
    from onnx import helper

    names = [value.name for value in twin.onnx_file.inputs]
    if isinstance(inputs, Mapping) and set(names) <= set(inputs):
        tensors = [inputs[name] for name in names]
    else:
        tensors = [v for v in tree_leaves(inputs) if isinstance(v, Tensor)]
    if len(tensors) != len(names):
        raise ExportError(
            f"{twin.onnx_file.path}: a batch must have a tensor for each of {', '.join(names)}, "
            f"got {len(tensors)}. Give the inputs without labels."
        )
    found = {}
    for value, tensor in zip(twin.onnx_file.inputs, tensors, strict=True):
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        found[value.name] = tensor.cpu().to(getattr(torch, kind.name))
    return found
