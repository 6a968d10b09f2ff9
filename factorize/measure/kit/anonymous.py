"""ONNX models whose weights are in a file of random numbers, which they share."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from factorize.measure.onnx_chain import input_shape
from factorize.onnx_graph import chain_nodes
from factorize.spec import ConvSpec, Size

WEIGHTS = "weights.bin"
_OPSET, _OPSET_WRAP = 13, 19
_PAGE = 4096
_LEAST_FLOATS = 16 * 2**20
"""Of the file: what two files read of it lies apart, as in a net, further than caches reach."""

_SETTINGS = ("Resize", "Upsample", "Clip", "Pad", "Range", "Pow", "Expand", "Tile")
"""Operators whose small inputs are no weights, but say what they do."""


class RandomWeights:
    """Places in the file of random numbers, one behind the other, and from the start again.

    Attributes
    ----------
    floats
        How long the file has to be.
    """

    def __init__(self) -> None:
        self.floats = _LEAST_FLOATS
        self._at = 0

    def take_(self, tensor: Any, shape: Sequence[int]) -> None:
        """Let an ONNX tensor be of that shape and in the file, in place."""
        import onnx

        name, bytes_ = tensor.name, 4 * prod(shape)
        self.floats = max(self.floats, -(-bytes_ // _PAGE) * _PAGE // 4)
        if self._at + bytes_ > 4 * self.floats:
            self._at = 0
        tensor.Clear()
        tensor.name, tensor.data_type = name, onnx.TensorProto.FLOAT
        tensor.dims.extend(shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS), ("offset", self._at), ("length", bytes_)):
            tensor.external_data.add(key=key, value=str(value))
        self._at += -(-bytes_ // _PAGE) * _PAGE


def chain_file(
    stages: Sequence[ConvSpec], size: Size, batch: int, copies: int, weights: RandomWeights
) -> bytes:
    """A model of copies of a chain side by side, each between what `ends_file` has of it.

    What is before a chain makes its input as a net's layer would, in whatever layout the runtime
    likes, and what is behind it reads its output: no change of layout is counted as the chain's.
    """
    return _model(stages, size, batch, copies, weights)


def ends_file(spec: ConvSpec, size: Size, batch: int, copies: int, weights: RandomWeights) -> bytes:
    """What is around the copies in `chain_file`, by itself."""
    return _model([spec], size, batch, copies, weights, ends_only=True)


def _model(
    stages: Sequence[ConvSpec], size: Size, batch: int, copies: int, weights: RandomWeights,
    *, ends_only: bool = False,
) -> bytes:  # fmt: skip
    from onnx import TensorProto, helper, numpy_helper

    first = stages[0]
    nodes, tensors, outputs = [], [], []
    for copy in range(copies):
        source, result = "x", f"y{copy}"
        if first.kernel:
            ones = (1,) * len(first.kernel)
            spread = np.full((first.in_channels, 1, *ones), 1 + copy / 64, np.float32)
            tensors.append(numpy_helper.from_array(spread, f"before{copy}.weight"))
            read = ["x", f"before{copy}.weight"]
            nodes.append(helper.make_node("Conv", read, [f"before{copy}"], kernel_shape=ones))
            source = f"before{copy}"
            if not ends_only:
                result = f"after{copy}"
        if not ends_only:
            stubs = [np.zeros((0,), np.float32)] * len(stages)
            more, theirs = chain_nodes(stages, source, result, f"c{copy}", weights=stubs)
            nodes += more
            named = {f"c{copy}.{index}.weight": spec for index, spec in enumerate(stages)}
            for tensor in theirs:
                if (spec := named.get(tensor.name)) is not None:
                    shape = spec.weight_shape if spec.kernel else spec.weight_shape[::-1]
                    weights.take_(tensor, shape)
            tensors += theirs
            source = result
        if first.kernel:
            nodes.append(helper.make_node("GlobalAveragePool", [source], [f"y{copy}"]))
        outputs.append(helper.make_tensor_value_info(f"y{copy}", TensorProto.FLOAT, None))
    shape = (batch, 1, *size) if first.kernel else input_shape(first, size, batch)
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "chain", [given], outputs, tensors)
    wraps = any(stage.padding_mode == "circular" for stage in stages)
    opset = helper.make_opsetid("", _OPSET_WRAP if wraps else _OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()


def anonymous(model: Any, shapes: Mapping[str, Sequence[int]], weights: RandomWeights) -> bytes:
    """A copy of an ONNX model without its weights, texts and free sizes.

    Parameters
    ----------
    shapes
        Of the inputs.
    """
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.doc_string = result.producer_name = result.domain = ""
    result.ir_version = min(result.ir_version, 8)
    del result.metadata_props[:], result.graph.value_info[:]
    for value in result.graph.input:
        if value.name in shapes:
            dims = value.type.tensor_type.shape.dim
            del dims[:]
            for size in shapes[value.name]:
                dims.add(dim_value=size)
    for graph in _graphs(result.graph):
        graph.doc_string = ""
        settings = {
            name for n in graph.node if n.op_type in _SETTINGS for name in n.input[1:] if name
        }
        for tensor in graph.initializer:
            if tensor.name not in settings:
                _forget_(tensor, weights)
        for node in graph.node:
            node.doc_string = ""
            if hasattr(node, "metadata_props"):
                del node.metadata_props[:]
            if node.op_type == "Constant" and node.output[0] not in settings:
                for one in node.attribute:
                    if one.HasField("t"):
                        _forget_(one.t, None)
    return result.SerializeToString()


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and those within its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _forget_(tensor: Any, weights: RandomWeights | None) -> None:
    """Random numbers in the place of a tensor's, where it may be a weight.

    Those of a tensor within a node stay in it: runtimes look for a file's at the graph alone.
    """
    from onnx import TensorProto, helper, numpy_helper

    shape = tuple(tensor.dims)
    if prod(shape) <= 1 or tensor.data_type in (
        TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING,
    ):  # fmt: skip
        return  # sizes, axes, indices, limits
    if weights and len(shape) > 1 and tensor.data_type == TensorProto.FLOAT:
        weights.take_(tensor, shape)
        return
    # Of a batch norm too, whose variances are above 0.
    draw = np.random.default_rng(zlib.crc32(tensor.name.encode()))
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    values = draw.uniform(0.5, 1.5, shape) if dtype.kind in "fV" else draw.integers(1, 100, shape)
    tensor.CopyFrom(numpy_helper.from_array(values.astype(dtype), tensor.name))
