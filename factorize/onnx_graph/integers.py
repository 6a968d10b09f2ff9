"""A float graph of convolutions as one in integers, with made-up codes, for timing."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import numpy as np

_SCALE, _ZERO = 0.05, 128
_LARGEST = 63  # of a weight: sums of products do not saturate anywhere


def in_integers_(graph: Any) -> None:
    """Let a graph of one input and any number of outputs compute in integers, in place.

    Inputs and outputs become uint8. All values have one grid; weights are int8, with a scale for
    each output channel of a layer.
    """
    from onnx import TensorProto, helper, numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    made: list[Any] = []
    new: dict[str, Any] = {}

    def constant(name: str, array: Any) -> str:
        new[name] = numpy_helper.from_array(array, name)
        return name

    grid = [constant("scale", np.float32(_SCALE)), constant("zero", np.uint8(_ZERO))]

    def weight(name: str, op_type: str) -> str:
        array = numpy_helper.to_array(tensors[name])
        if array.dtype != np.float32:
            new[name] = tensors[name]
            return name
        if op_type == "Add":  # a bias by itself is a value like any other
            codes, scales, axis = np.full(array.shape, _ZERO, np.uint8), grid, None
        elif array.ndim == 1:
            steps = np.full(len(array), _SCALE * _SCALE, np.float32)
            codes, scales, axis = np.zeros(len(array), np.int32), [steps], 0
        else:
            axis = 1 if op_type == "MatMul" else 0
            draw = np.random.default_rng(crc32(name.encode()))  # no two copies are one
            codes = draw.integers(-_LARGEST, _LARGEST + 1, array.shape, np.int8)
            scales = [np.full(array.shape[axis], _SCALE, np.float32)]
        named = [one if isinstance(one, str) else constant(f"{name}.scale", one) for one in scales]
        more: dict[str, Any] = {} if axis is None else {"axis": axis}
        inputs = [constant(f"{name}.codes", codes), *named]
        made.append(helper.make_node("DequantizeLinear", inputs, [f"{name}.value"], **more))
        return f"{name}.value"

    outputs = {value.name for value in graph.output}
    made += [
        helper.make_node("DequantizeLinear", [value.name, *grid], [f"{value.name}.v"])
        for value in graph.input
    ]
    starts = {value.name: f"{value.name}.v" for value in graph.input}
    for node in graph.node:
        op_type = node.op_type
        for index, name in enumerate(node.input):
            node.input[index] = weight(name, op_type) if name in tensors else starts.get(name, name)
        name = node.output[0]
        node.output[0] = f"{name}.exact"
        made.append(node)
        codes = name if name in outputs else f"{name}.codes"
        made.append(helper.make_node("QuantizeLinear", [f"{name}.exact", *grid], [codes]))
        if name not in outputs:
            made.append(helper.make_node("DequantizeLinear", [codes, *grid], [name]))
    kept = [*made]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(new.values())
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.elem_type = TensorProto.UINT8
