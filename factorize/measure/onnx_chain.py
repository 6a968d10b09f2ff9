"""Convolutions as ONNX nodes with made-up weights: all that timing needs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from factorize.onnx_graph import OPSET, chain_nodes, in_integers_
from factorize.spec import ConvSpec, Size

LARGEST_BLOCK = 16  # channels in ONNX Runtime's blocked layout: 8 or 16


def input_shape(spec: ConvSpec, size: Size, batch: int) -> Size:
    """Of a layer: channels first, but for a linear layer."""
    return (batch, spec.in_channels, *size) if spec.kernel else (batch, *size, spec.in_channels)


def chain_model(
    stages: Sequence[ConvSpec], size: Size, batch: int, copies: int = 1, *, int8: bool = False
) -> bytes:
    """A model of one chain alone, or of copies side by side, as ONNX Runtime takes it.

    In a net, neighbouring convolutions hand on a blocked layout. A chain by itself would be charged
    for going there and back: where the runtime put such nodes at its ends, they are taken out.

    Parameters
    ----------
    int8
        Whether it computes in integers, from uint8 to uint8.
    """
    import onnx
    import onnxruntime

    nodes, weights, results = copies_of(stages, "x", copies)
    model = model_of(nodes, weights, input_shape(stages[0], size, batch), results, int8=int8)
    if not stages[0].kernel:  # linear layers have but one layout
        return model.SerializeToString()
    with tempfile.TemporaryDirectory(prefix="factorize-") as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        optimized = onnx.load(options.optimized_model_filepath)
    if int8:
        _strip_channels_last(optimized.graph)
    else:
        _strip(optimized.graph, stages[0].in_channels)
    return optimized.SerializeToString()


def copies_of(
    stages: Sequence[ConvSpec], source: str, copies: int
) -> tuple[list[Any], list[Any], list[str]]:
    """Nodes and weights of copies of a chain that read one value, and names of their results."""
    nodes, weights = [], []
    for copy in range(copies):
        more, theirs = chain_nodes(stages, source, f"y{copy}", f"c{copy}")
        nodes += more
        weights += theirs
    return nodes, weights, [f"y{copy}" for copy in range(copies)]


def model_of(
    nodes: Sequence[Any], weights: Sequence[Any], shape: Size, results: Sequence[str], *, int8: bool
) -> Any:
    """An ``onnx.ModelProto`` that reads ``x``."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        nodes, "chain", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results], weights,
    )  # fmt: skip
    if int8:
        in_integers_(graph)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


def _strip(graph: Any, channels: int) -> None:
    """Remove the changes of layout at both ends: the input and output stay blocked."""
    from onnx import TensorProto, helper

    outputs = {value.name: value for value in graph.output}
    for node in list(graph.node):
        whole = channels % LARGEST_BLOCK == 0  # of the same shape in both layouts
        if node.op_type == "ReorderInput" and node.input[0] == "x" and whole:
            for reader in graph.node:
                for index, name in enumerate(reader.input):
                    if name == node.output[0]:
                        reader.input[index] = "x"
            graph.node.remove(node)
        elif node.op_type == "ReorderOutput" and node.output[0] in outputs:
            result = helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, None)
            outputs[node.output[0]].CopyFrom(result)
            graph.node.remove(node)


def _strip_channels_last(graph: Any) -> None:
    """Remove the changes of layout at both ends: integer kernels have the channels last."""
    outputs = {value.name: value for value in graph.output}
    (source,) = graph.input
    turned = [node for node in graph.node if node.op_type == "Transpose"]
    readers = [node for node in graph.node if "x" in node.input]
    if readers and all(node in turned for node in readers):
        names = {node.output[0] for node in readers}
        order = [*readers[0].attribute[0].ints]
        dims = [*source.type.tensor_type.shape.dim]
        moved = [dims[axis].dim_value for axis in order]
        for dim, size in zip(dims, moved, strict=True):
            dim.dim_value = size
        for node in graph.node:
            for index, name in enumerate(node.input):
                if name in names:
                    node.input[index] = "x"
        for node in readers:
            graph.node.remove(node)
    for node in turned:
        if node.output[0] in outputs:
            value = outputs[node.output[0]]
            value.name = node.input[0]
            value.type.tensor_type.ClearField("shape")
            graph.node.remove(node)
