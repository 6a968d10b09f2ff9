"""A chain as ONNX nodes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from math import prod, sqrt
from typing import Any

import numpy as np

from factorize.spec import ConvSpec, Size

OPSET = 19  # the first whose Pad wraps around
_PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def chain_nodes(
    stages: Sequence[ConvSpec],
    source: str,
    result: str,
    prefix: str,
    bias: str = "",
    weights: Sequence[np.ndarray] | None = None,
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
    weights
        One of each stage, as the node reads it. None: made-up ones, which do to time it.
    """
    from onnx import helper, numpy_helper

    if weights is None:
        if any(spec.kind == "channel_shuffle" for spec in stages):
            raise ValueError(f"{prefix}: a channel shuffle is not timed")
        weights = [_weight(spec, f"{prefix}.{index}") for index, spec in enumerate(stages)]
    nodes, tensors = [], []
    for index, spec in enumerate(stages):
        last = index == len(stages) - 1
        name = f"{prefix}.{index}"
        if spec.kind == "channel_shuffle":
            order = np.arange(spec.in_channels).reshape(spec.groups, -1).T.flatten()
            tensors.append(numpy_helper.from_array(order, f"{name}.order"))
            gathered = [source, f"{name}.order"]
            nodes.append(helper.make_node("Gather", gathered, [f"{name}.y"], name, axis=1))
            source = f"{name}.y"
            continue
        if not spec.kernel:
            made = _linear_nodes(
                spec, source, result if last else f"{name}.y", name, bias if last else "",
                weights[index],
            )  # fmt: skip
            nodes, tensors = nodes + made[0], tensors + made[1]
            source = f"{name}.y"
            continue
        before, after = pads_of(spec)
        if spec.padding_mode != "zeros" and any((*before, *after)):
            pads = np.array((0, 0, *before, 0, 0, *after), np.int64)
            tensors.append(numpy_helper.from_array(pads, f"{name}.pads"))
            nodes.append(
                helper.make_node(
                    "Pad", [source, f"{name}.pads"], [f"{name}.padded"], f"{name}.pad",
                    mode=_PAD_MODES[spec.padding_mode],
                )
            )  # fmt: skip
            source, before, after = f"{name}.padded", (0,) * len(before), (0,) * len(after)
        tensors.append(numpy_helper.from_array(weights[index], f"{name}.weight"))
        inputs = [source, f"{name}.weight"]
        if last and bias:
            inputs.append(bias)
        elif spec.bias:
            zeros = np.zeros(spec.out_channels, np.float32)
            tensors.append(numpy_helper.from_array(zeros, f"{name}.bias"))
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
    return nodes, tensors


def _linear_nodes(
    spec: ConvSpec, source: str, result: str, name: str, bias: str, weight: np.ndarray
) -> tuple[list[Any], list[Any]]:
    """A linear layer, whatever axes its input has before the channels."""
    from onnx import helper, numpy_helper

    weights = [numpy_helper.from_array(weight, f"{name}.weight")]
    if not (bias or spec.bias):
        return [helper.make_node("MatMul", [source, f"{name}.weight"], [result], name)], weights
    if not bias:
        bias = f"{name}.bias"
        weights.append(numpy_helper.from_array(np.zeros(spec.out_channels, np.float32), bias))
    product = helper.make_node("MatMul", [source, f"{name}.weight"], [f"{name}.product"], name)
    added = helper.make_node("Add", [f"{name}.product", bias], [result], f"{name}.add")
    return [product, added], weights


def place_pads(nodes: Sequence[Any], stages: Sequence[ConvSpec], more: np.ndarray) -> None:
    """Pad a chain's nodes by so much more: each axis at the stage that has the axis, in place.

    Parameters
    ----------
    nodes, stages
        As `chain_nodes` gives and takes them.
    more
        (2 axes,): before each axis, then behind each.
    """
    convs = [node for node in nodes if node.op_type.startswith("Conv")]
    kinds = [spec for spec in stages if spec.kernel]
    axes = len(more) // 2
    for axis in np.flatnonzero(more.reshape(2, axes).any(0)):
        has = [s.kernel[axis] > 1 or s.stride[axis] > 1 for s in kinds]
        node = convs[has.index(True) if True in has else 0]
        (pads,) = (one.ints for one in node.attribute if one.name == "pads")
        for side in (axis, axis + axes):
            pads[side] += int(more[side])


def place_auto_pad(nodes: Sequence[Any], node: Any) -> None:
    """Let a chain's nodes pad by the size of their input where the one that they replace does.

    Each pads the axes of its own kernel, and the others by nothing.
    """
    auto = next((one for one in node.attribute if one.name == "auto_pad"), None)
    if auto is None or not auto.s.startswith(b"SAME"):
        return
    for one in nodes:
        if one.op_type == "Conv":
            given = [a for a in one.attribute if a.name != "pads"]
            del one.attribute[:]
            one.attribute.extend([*given, auto])


def pads_of(spec: ConvSpec) -> tuple[Size, Size]:
    """Padding before and after, per axis."""
    if spec.padding != "same":
        return spec.padding, spec.padding
    total = [d * (k - 1) for d, k in zip(spec.dilation, spec.kernel, strict=True)]
    return tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)


def _weight(spec: ConvSpec, name: str) -> np.ndarray:
    """Numbers of no meaning, of a size that keeps activations finite.

    Others for each name: the runtime makes one of copies of a convolution with equal weights.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    pool = rng.standard_normal(4096).astype(np.float32)
    shape = spec.weight_shape if spec.kernel else spec.weight_shape[::-1]
    return np.resize(pool, shape) / np.float32(sqrt(prod(spec.kernel_shape[1:])))
