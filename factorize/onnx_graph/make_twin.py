"""From an ONNX file to its twin, node by node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from factorize.errors import ModelLoadError
from factorize.onnx_graph.layers import LAYERS, Layer, layer_of
from factorize.onnx_graph.onnx_file import OnnxFile, widened
from factorize.onnx_graph.operators import Operator, operator_of
from factorize.onnx_graph.twin import Form, Step, Twin
from factorize.onnx_graph.walk import inlined, reads
from factorize.system.imports import brief
from factorize.tensor.twins import LEFT_ALONE, told_by_reason

_QUANTIZED = ("QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger")
_COLOURS = (1, 3, 4)


def make_twin(file: OnnxFile) -> tuple[Twin, tuple[str, ...]]:
    """The twin of a file, and what to tell of it.

    Raises
    ------
    ModelLoadError
        A node is none that torch computes, or its data is damaged.
    """
    making = _Making(file)
    for node in making.graph.node:
        making.add(node)
    constants = {name: making.tensor(name) for name in making.used}
    form = Form(_fixed_batch(file), channels_last=frozenset(_channels_last(file)))
    twin = Twin(file, making.steps, making.modules, constants, form)
    return twin, (*making.notes(), *(
        f"{name} is (N, H, W, C) in the file: images are turned from (N, C, H, W)"
        for name in sorted(form.channels_last)
    ))  # fmt: skip


class _Making:
    """What is known on the way."""

    def __init__(self, file: OnnxFile) -> None:
        self.file, self.graph = file, inlined(file.proto).graph
        self.own = {node.output[0] for node in file.proto.graph.node if node.output}
        self.protos = dict(file.constants)
        self.steps: list[Step] = []
        self.modules: dict[str, nn.Module] = {}
        self.used: dict[str, None] = {}  # constants that are read while the twin runs
        self.arrays: dict[str, np.ndarray] = {}
        self.taken: set[str] = set()
        self.folders: set[str] = set()
        self.alone: list[tuple[str, str]] = []
        outputs = [value.name for value in self.graph.output]
        self.readers = Counter(outputs)
        self.makers = {name: node for node in self.graph.node for name in node.output}
        for node in self.graph.node:
            alias = node.op_type == "Identity" and {*node.input} & self.protos.keys()
            if alias and node.output[0] not in outputs:
                self.protos[node.output[0]] = self.protos[node.input[0]]
        for node in self.graph.node:
            if node.op_type == "Identity" and node.output[0] in self.protos:
                continue
            for name in reads(node):  # under whatever name, it is one tensor
                self.readers[id(self.protos[name]) if name in self.protos else name] += 1

    def add(self, node: Any) -> None:
        """Add a step for a node; none for one that is a constant."""
        if node.output and node.output[0] in self.protos:
            return
        name = self.name_of(node)
        try:
            module, layer, operator = self.made(node, name)
        except ModelLoadError:
            raise
        except Exception as error:  # the converter has dozens, and a damaged node any
            raise ModelLoadError(
                f"{self.file.path}: node {name}, {node.op_type} of opset {self.file.opset}, cannot "
                f"be computed in torch: {brief(error)}. Export the model without it, or give the "
                "PyTorch model."
            ) from error
        if module is not None:
            self.modules[name] = module
        inputs = tuple(node.input) if layer is None else (node.input[0],)
        around = tuple(set(reads(node)) - set(inputs))
        if layer is not None:
            around = ()
        for one in (*inputs, *around):
            if one in self.protos:
                self.used[one] = None
        self.steps.append(
            Step(name, node.op_type, inputs, tuple(node.output), layer, operator, around)
        )

    def made(self, node: Any, name: str) -> tuple[nn.Module | None, Layer | None, Operator | None]:
        """The node's module and how it is called, or what computes it."""
        made = None
        weighted = node.op_type in LAYERS and node.domain in ("", "ai.onnx")
        norm = node.op_type == "BatchNormalization" and node.output[0] in self.own
        if (weighted and self.known(node, 1)) or norm:
            made = layer_of(node, [self.array(one) for one in node.input])
        reason = self.reason(node, made is not None)
        if made is not None:
            if reason:
                setattr(made[0], LEFT_ALONE, reason)
                made[0].requires_grad_(False)
            return *made, None
        if reason:
            self.alone.append((name, reason))
        protos = {n: self.proto(n) for n in dict.fromkeys(node.input) if n in self.protos}
        operator = operator_of(self.in_float(node), protos, self.file.opset)
        if isinstance(operator, nn.Module):
            for part in operator.modules():
                setattr(part, LEFT_ALONE, "it is in a graph inside of a node")
            return operator, None, None
        return None, None, operator

    def reason(self, node: Any, made: bool) -> str | None:
        """Why a node with a weight must stay as it is."""
        if node.op_type in _QUANTIZED:
            return "it is quantized"
        if node.op_type not in LAYERS or node.domain not in ("", "ai.onnx"):
            return None
        weight = node.input[1]
        if weight not in self.protos:
            if (
                node.op_type in ("Gemm", "MatMul")
                and weight in self.makers
                and (self.makers[weight].op_type != "DequantizeLinear")
            ):
                return None  # a product of two values is no layer
            maker = self.makers.get(weight)
            quantized = maker is not None and maker.op_type == "DequantizeLinear"
            return "its weight is quantized" if quantized else "its weight is computed"
        if not made:
            if node.op_type == "MatMul" or not self.known(node, 1):
                return None
            return "no module of torch computes all of it"
        if node.output[0] not in self.own:
            return "it is in a function of the file"
        if node.op_type == "Gemm" and self.file.opset < 7:
            return f"Add does not broadcast in opset {self.file.opset}"
        if (times := self.readers[id(self.protos[weight])]) > 1:
            return f"its weight is used {times} times in the file"
        return None

    def known(self, node: Any, index: int) -> bool:
        """Whether an input is a constant of a real floating type."""
        array = self.array(node.input[index]) if index < len(node.input) else None
        return array is not None and array.dtype in (np.float32, np.float64)

    def array(self, name: str) -> np.ndarray | None:
        """A constant's values, half precision as float32; None of what is computed."""
        if name not in self.protos:
            return None
        if name not in self.arrays:
            array = self.file.array(self.protos[name])
            self.arrays[name] = widened(array) if self.file.half else array
        return self.arrays[name]

    def tensor(self, name: str) -> Tensor:
        """A constant that is read while the twin runs."""
        array = self.array(name)
        assert array is not None
        try:
            return torch.from_numpy(np.array(array))
        except TypeError as error:
            raise ModelLoadError(
                f"{self.file.path}: {name} must be numbers that torch has, got {array.dtype}. "
                "Export the model without it."
            ) from error

    def proto(self, name: str) -> Any:
        """A constant as the converter reads it."""
        from onnx import numpy_helper

        return numpy_helper.from_array(np.asarray(self.array(name)), name)

    def in_float(self, node: Any) -> Any:
        """A node of a half-precision file, as the twin computes it in float32."""
        import onnx

        if not self.file.half:
            return node
        half = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
        own = onnx.NodeProto()
        own.CopyFrom(node)
        for attribute in own.attribute:
            if attribute.name in ("to", "dtype") and attribute.i in half:
                attribute.i = onnx.TensorProto.FLOAT
            if attribute.HasField("t") and attribute.t.data_type in half:
                array = widened(onnx.numpy_helper.to_array(attribute.t))
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(array, attribute.t.name))
        return own

    def name_of(self, node: Any) -> str:
        """The node's name, else its output's, where it can be that of a module; else like it."""
        for name in (node.name, node.output[0]):
            if name and self.free(name):
                break
        else:
            base = (node.name or node.output[0] or node.op_type).replace(".", "_")[:200]
            tries = (base if i == 0 else f"{base}_{i}" for i in range(len(self.graph.node) + 9))
            name = next(one for one in tries if one and self.free(one))
        parts = name.split(".")
        self.taken.add(name)
        self.folders |= {".".join(parts[:i]) for i in range(1, len(parts))}
        return name

    def free(self, name: str) -> bool:
        """Whether a module may have the name: no other has, and none leads through it."""
        parts = name.split(".")
        above = [".".join(parts[:i]) for i in range(1, len(parts))]
        return (
            name.isprintable()
            and len(name) <= 200
            and name not in self.taken
            and name not in self.folders
            and self.taken.isdisjoint(above)
            and all(parts)
            and not any(hasattr(nn.Module, p) or p in _OWN or p.startswith("onnx_") for p in parts)
        )

    def notes(self) -> Iterator[str]:
        """What has weights and is no layer of the twin's, by reason."""
        return told_by_reason(self.alone)


_OWN = frozenset(vars(nn.Module()))


def _fixed_batch(file: OnnxFile) -> int:
    """The size of the first axis of all inputs, where it is one number."""
    sizes = {
        value.type.tensor_type.shape.dim[0].dim_value
        for value in file.inputs
        if value.type.tensor_type.shape.dim
    }
    return next(iter(sizes)) if len(sizes) == 1 else 0


def _channels_last(file: OnnxFile) -> Iterator[str]:
    """Names of inputs that are images with the colours as the last axis."""
    for value in file.inputs:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if len(dims) == 4 and dims[3] in _COLOURS and dims[1] not in _COLOURS:
            yield value.name
