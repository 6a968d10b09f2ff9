"""An ONNX file: its twin in torch, checked against the file in ONNX Runtime."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from factorize.errors import ModelLoadError
from factorize.models.door import LoadedModel, Source
from factorize.onnx_graph import OnnxFile, check_twin, make_twin, read_onnx

OPTIONS: tuple[str, ...] = ("shapes",)

_MOST_VALUES = 10**8  # of one input


def takes(source: Source) -> bool:
    """Whether the name ends as those of ONNX files do."""
    return source.path.suffix.lower() == ".onnx"


def load(source: Source) -> LoadedModel:
    """Make the twin; what it computes is checked once the size of an input is known."""
    file = read_onnx(source.path)
    twin, notes = make_twin(file)
    half = ("saved in half precision: fitted in float32, written as it was",) if file.half else ()
    shapes = {value.name: _shape(file, value, source) for value in file.inputs}
    one_image = len(shapes) == 1 and _is_float(file.inputs[0])
    example = shape = None
    if one_image:
        (only,) = shapes.values()
        if only is not None and next(iter(twin.onnx_form.channels_last), None):
            only = (only[0], only[3], *only[1:3])
        shape = only and only[1:]
    elif missing := [name for name, one in shapes.items() if one is None]:
        raise ModelLoadError(
            f"{source.path}: the sizes of {', '.join(missing)} are not known. Give --input-shape "
            f"{','.join(f'{name}=1x...' for name in shapes)}."
        )
    else:
        example = {value.name: _example(value, shapes[value.name]) for value in file.inputs}
    return LoadedModel(
        twin, f"ONNX file {source.path.name}", shape, notes=(*notes, *half),
        example=example, check=partial(check_twin, twin),
    )  # fmt: skip


def _shape(file: OnnxFile, value: Any, source: Source) -> tuple[int, ...] | None:
    """Of an input with one sample; None where the file does not say it."""
    if source.shapes and value.name in source.shapes:
        return source.shapes[value.name]
    dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    if not all(dims[1:]) or not dims:
        return None
    shape = (1, *dims[1:])
    if torch.Size(shape).numel() > _MOST_VALUES:
        raise ModelLoadError(
            f"{file.path}: {value.name} must have up to {_MOST_VALUES:,} values, got {shape}. "
            "Give a smaller one with --input-shape."
        )
    return shape


def _is_float(value: Any) -> bool:
    from onnx import TensorProto

    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
    return value.type.tensor_type.elem_type in kinds


def _example(value: Any, shape: tuple[int, ...] | None) -> Tensor:
    """Random numbers; zeros where they are no floating ones."""
    from onnx import helper

    assert shape is not None
    if _is_float(value):
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))
    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return torch.zeros(shape, dtype=getattr(torch, kind.name))
