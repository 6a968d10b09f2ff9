"""Convolutions as ONNX nodes with made-up weights: all that timing needs."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Sequence
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from factorize.spec import ConvSpec, Size

OPSET = 19  # the first whose Pad wraps around
LARGEST_BLOCK = 16  # channels in ONNX Runtime's blocked layout: 8 or 16
_PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def chain_nodes(
    stages: Sequence[ConvSpec], source: str, result: str, prefix: str, bias: str = ""
) -> tuple[list[Any], list[Any]]:
    """The nodes of a chain from one value to another, and their weights.

    Parameters
    ----------
    source, result
        Names of the values that the chain reads and makes.
    prefix
        Of all other names.
    bias
        Name of the bias of the last stage, where there is one already.
    """
    from onnx import helper, numpy_helper

    nodes, weights = [], []
    for index, spec in enumerate(stages):
        last = index == len(stages) - 1
        name = f"{prefix}.{index}"
        if spec.kind == "channel_shuffle":
            raise ValueError(f"{name}: a channel shuffle is not timed")
        if not spec.kernel:
            made = _linear_nodes(
                spec, source, result if last else f"{name}.y", name, bias if last else ""
            )
            nodes, weights = nodes + made[0], weights + made[1]
            source = f"{name}.y"
            continue
        before, after = pads_of(spec)
        if spec.padding_mode != "zeros" and any((*before, *after)):
            pads = np.array((0, 0, *before, 0, 0, *after), np.int64)
            weights.append(numpy_helper.from_array(pads, f"{name}.pads"))
            nodes.append(
                helper.make_node(
                    "Pad", [source, f"{name}.pads"], [f"{name}.padded"], f"{name}.pad",
                    mode=_PAD_MODES[spec.padding_mode],
                )
            )  # fmt: skip
            source, before, after = f"{name}.padded", (0,) * len(before), (0,) * len(after)
        weights.append(numpy_helper.from_array(_weight(spec, name), f"{name}.weight"))
        inputs = [source, f"{name}.weight"]
        if last and bias:
            inputs.append(bias)
        elif spec.bias:
            zeros = np.zeros(spec.out_channels, np.float32)
            weights.append(numpy_helper.from_array(zeros, f"{name}.bias"))
            inputs.append(f"{name}.bias")
        source = result if last else f"{name}.y"
        more: dict[str, Any] = {}
        if spec.transposed:
            more["output_padding"] = spec.output_padding
        nodes.append(
            helper.make_node(
                "ConvTranspose" if spec.transposed else "Conv", inputs, [source], name,
                kernel_shape=spec.kernel, strides=spec.stride, dilations=spec.dilation,
                pads=(*before, *after), group=spec.groups, **more,
            )
        )  # fmt: skip
    return nodes, weights


def _linear_nodes(
    spec: ConvSpec, source: str, result: str, name: str, bias: str
) -> tuple[list[Any], list[Any]]:
    """A linear layer, whatever axes its input has before the channels."""
    from onnx import helper, numpy_helper

    weights = [numpy_helper.from_array(_weight(spec, name), f"{name}.weight")]
    if not (bias or spec.bias):
        return [helper.make_node("MatMul", [source, f"{name}.weight"], [result], name)], weights
    if not bias:
        bias = f"{name}.bias"
        weights.append(numpy_helper.from_array(np.zeros(spec.out_channels, np.float32), bias))
    product = helper.make_node("MatMul", [source, f"{name}.weight"], [f"{name}.product"], name)
    added = helper.make_node("Add", [f"{name}.product", bias], [result], f"{name}.add")
    return [product, added], weights


def input_shape(spec: ConvSpec, size: Size, batch: int) -> Size:
    """Of a layer: channels first, but for a linear layer."""
    return (batch, spec.in_channels, *size) if spec.kernel else (batch, *size, spec.in_channels)


def chain_model(stages: Sequence[ConvSpec], size: Size, batch: int, copies: int = 1) -> bytes:
    """A model of one chain alone, or of copies side by side, as ONNX Runtime takes it.

    In a net, neighbouring convolutions hand on a blocked layout. A chain by itself would be charged
    for going there and back: where the runtime put such nodes at its ends, they are taken out.
    """
    import onnx
    import onnxruntime
    from onnx import helper

    nodes, weights = [], []
    for copy in range(copies):
        more, theirs = chain_nodes(stages, "x", f"y{copy}", f"c{copy}")
        nodes += more
        weights += theirs
    outputs = [
        helper.make_tensor_value_info(f"y{copy}", onnx.TensorProto.FLOAT, None)
        for copy in range(copies)
    ]
    channels = stages[0].in_channels
    graph = helper.make_graph(
        nodes, "chain",
        [
            helper.make_tensor_value_info(
                "x", onnx.TensorProto.FLOAT, input_shape(stages[0], size, batch)
            )
        ],
        outputs, weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
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
    _strip(optimized.graph, channels)
    return optimized.SerializeToString()


def pads_of(spec: ConvSpec) -> tuple[Size, Size]:
    """Padding before and after, per axis."""
    if spec.padding != "same":
        return spec.padding, spec.padding
    total = [d * (k - 1) for d, k in zip(spec.dilation, spec.kernel, strict=True)]
    return tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)


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


def _weight(spec: ConvSpec, name: str) -> np.ndarray:
    """Numbers of no meaning, of a size that keeps activations finite.

    Others for each name: the runtime makes one of copies of a convolution with equal weights.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    pool = rng.standard_normal(4096).astype(np.float32)
    shape = spec.weight_shape if spec.kernel else spec.weight_shape[::-1]
    return np.resize(pool, shape) / np.float32(sqrt(prod(spec.kernel_shape[1:])))
