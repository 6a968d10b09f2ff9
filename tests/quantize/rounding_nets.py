"""Small ONNX files of every kind that integers meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper
from onnx_files import node, random, save

Parts = tuple[Sequence[NodeProto], Mapping[str, np.ndarray], dict[str, Any]]
"""Nodes, weights, and what else `save` is given."""

PADS = {"pads": [1, 1, 1, 1]}
LIMITS = {"low": np.float32(0), "high": np.float32(6)}


def conv_relu() -> Parts:
    return [
        node("Conv", "x w b", "a", **PADS), node("Relu", "a", "r"), node("Conv", "r v", "y"),
    ], {"w": random(8, 3, 3, 3), "b": random(8), "v": random(5, 8, 3, 3)}, {}  # fmt: skip


def _after(kind: str, weights: Mapping[str, np.ndarray] | None = None, **attributes: Any) -> Parts:
    """A node between two convolutions; it reads `a` and what weights it has."""
    weights = weights or {}
    reads = " ".join(["a", *weights])
    return (
        [
            node("Conv", "x w b", "a", **PADS),
            node(kind, reads, "r", **attributes),
            node("Conv", "r v", "y", strides=[2, 2]),
        ],
        {"w": random(8, 3, 3, 3), "b": random(8), "v": random(5, 8, 1, 1), **weights},
        {},
    )


def cp_chain() -> Parts:
    return [
        node("Conv", "x w", "a"), node("Conv", "a d", "c", group=6, **PADS),
        node("Conv", "c v b", "y"),
    ], {
        "w": random(6, 3, 1, 1), "d": random(6, 1, 3, 3), "v": random(9, 6, 1, 1), "b": random(9),
    }, {}  # fmt: skip


def spatial_chain() -> Parts:
    return (
        [
            node("Conv", "x w b", "a", pads=[1, 0, 1, 0]),
            node("Conv", "a v c", "y", pads=[0, 1, 0, 1]),
        ],
        {"w": random(4, 3, 3, 1), "b": random(4), "v": random(8, 4, 1, 3), "c": random(8)},
        {},
    )


def residual() -> Parts:
    return [
        node("Conv", "x w", "a", **PADS), node("Relu", "a", "r"),
        node("Conv", "r v b", "c", **PADS), node("Add", "c r", "s"), node("Relu", "s", "t"),
        node("Conv", "t u", "y"),
    ], {
        "w": random(6, 3, 3, 3), "v": random(6, 6, 3, 3, scale=0.2), "b": random(6),
        "u": random(4, 6, 1, 1),
    }, {}  # fmt: skip


def concat() -> Parts:
    return [
        node("Conv", "x w", "a"), node("Conv", "x v", "c"), node("Concat", "a c", "s", axis=1),
        node("Conv", "s u", "y"),
    ], {
        "w": random(6, 3, 1, 1), "v": random(4, 3, 1, 1, scale=3), "u": random(4, 10, 1, 1),
    }, {}  # fmt: skip


def global_pool() -> Parts:
    return [
        node("Conv", "x w", "a", **PADS), node("Relu", "a", "r"),
        node("GlobalAveragePool", "r", "p"), node("Flatten", "p", "f"),
        node("Gemm", "f fc b", "y", "fc", transB=1),
    ], {"w": random(6, 3, 3, 3), "fc": random(5, 6), "b": random(5)}, {}  # fmt: skip


def gemms() -> Parts:
    return [
        node("Gemm", "x w b", "a", transB=1), node("Relu", "a", "r"), node("Gemm", "r v", "c"),
        node("MatMul", "c u", "y"),
    ], {
        "w": random(12, 7), "b": random(12), "v": random(12, 9), "u": random(9, 5),
    }, {"inputs": {"x": ("N", 7)}}  # fmt: skip


def matmul() -> Parts:
    return [node("MatMul", "x w", "a"), node("Add", "a b", "s"), node("MatMul", "s v", "y")], {
        "w": random(7, 12), "b": random(12), "v": random(12, 5),
    }, {"inputs": {"x": ("N", 6, 7)}}  # fmt: skip


def grouped() -> Parts:
    return [
        node("Conv", "x w b", "a"), node("Conv", "a v", "c", group=3, **PADS),
        node("Conv", "c u", "y"),
    ], {
        "w": random(6, 3, 1, 1), "b": random(6), "v": random(9, 2, 3, 3), "u": random(4, 9, 1, 1),
    }, {}  # fmt: skip


def dilated() -> Parts:
    return [
        node("Conv", "x w b", "a", dilations=[2, 2], pads=[2, 2, 2, 2]), node("Relu", "a", "r"),
        node("Conv", "r v", "y", strides=[2, 1]),
    ], {"w": random(6, 3, 3, 3), "b": random(6), "v": random(5, 6, 3, 3)}, {}  # fmt: skip


def uneven_pads() -> Parts:
    return [
        node("Conv", "x w b", "a", pads=[0, 1, 2, 0]), node("Relu", "a", "r"),
        node("Conv", "r v", "y", auto_pad="SAME_LOWER", strides=[2, 2]),
    ], {"w": random(6, 3, 3, 3), "b": random(6), "v": random(5, 6, 3, 3)}, {}  # fmt: skip


def one_d() -> Parts:
    return [
        node("Conv", "x w b", "a", pads=[1, 1]), node("Relu", "a", "r"), node("Conv", "r v", "y"),
    ], {
        "w": random(8, 3, 3), "b": random(8), "v": random(5, 8, 3),
    }, {"inputs": {"x": ("N", 3, 20)}}  # fmt: skip


def three_d() -> Parts:
    return [
        node("Conv", "x w b", "a", pads=[1] * 6), node("Relu", "a", "r"), node("Conv", "r v", "y"),
    ], {
        "w": random(6, 2, 3, 3, 3), "b": random(6), "v": random(5, 6, 1, 1, 1),
    }, {"inputs": {"x": ("N", 2, 4, 6, 5)}}  # fmt: skip


def silu() -> Parts:
    nodes, weights, more = conv_relu()
    return [
        nodes[0], node("Sigmoid", "a", "s"), node("Mul", "a s", "r"), nodes[2],
    ], weights, more  # fmt: skip


def transposed() -> Parts:
    return [
        node("Conv", "x w b", "a", **PADS), node("Relu", "a", "r"),
        node("ConvTranspose", "r u", "c", "up", strides=[2, 2]), node("Conv", "c v", "y"),
    ], {
        "w": random(8, 3, 3, 3), "b": random(8), "u": random(8, 4, 2, 2), "v": random(5, 4, 1, 1),
    }, {}  # fmt: skip


def two_inputs() -> Parts:
    return [
        node("Conv", "x w", "a"), node("Conv", "z v", "c"), node("Add", "a c", "s"),
        node("Conv", "s u", "y"),
    ], {
        "w": random(6, 3, 1, 1), "v": random(6, 2, 1, 1), "u": random(4, 6, 1, 1),
    }, {"inputs": {"x": ("N", 3, 6, 6), "z": ("N", 2, 6, 6)}}  # fmt: skip


def two_outputs() -> Parts:
    return [
        node("Conv", "x w b", "a", **PADS), node("Relu", "a", "r"), node("Conv", "r v", "y"),
        node("Conv", "r u", "z"),
    ], {
        "w": random(8, 3, 3, 3), "b": random(8), "v": random(5, 8, 3, 3), "u": random(2, 8, 1, 1),
    }, {"outputs": ("y", "z")}  # fmt: skip


def read_output() -> Parts:
    """An output that is read inside too, and one before a ReLU."""
    nodes, weights, more = conv_relu()
    return nodes, weights, {**more, "outputs": ("y", "r", "a")}


def channels_last() -> Parts:
    nodes, weights, _ = conv_relu()
    return [
        node("Transpose", "image", "x", perm=[0, 3, 1, 2]), *nodes,
    ], weights, {"inputs": {"image": ("N", 9, 10, 3)}}  # fmt: skip


def batch_of_one() -> Parts:
    nodes, weights, _ = global_pool()
    return [
        *nodes[:3], node("Reshape", "p shape", "f"), *nodes[4:]
    ], {**weights, "shape": np.array([1, 6])}, {"inputs": {"x": (1, 3, 9, 10)}}  # fmt: skip


def batch_of_four() -> Parts:
    nodes, weights, _ = batch_of_one()
    shape = {"shape": np.array([4, -1])}
    return nodes, {**weights, **shape}, {"inputs": {"x": (4, 3, 9, 10)}}


def one_by_one() -> Parts:
    """Its batch is free, but no batch goes through it."""
    nodes, weights, _ = batch_of_one()
    return nodes, weights, {"inputs": {"x": ("N", 3, 9, 10)}}


def shared() -> Parts:
    return [
        node("Conv", "x w", "a", **PADS), node("Relu", "a", "r"),
        node("Conv", "r v b", "c", **PADS), node("Conv", "c v b", "d", **PADS),
        node("Conv", "d w2", "y"),
    ], {
        "w": random(6, 3, 3, 3), "v": random(6, 6, 3, 3, scale=0.2), "b": random(6),
        "w2": random(4, 6, 1, 1),
    }, {}  # fmt: skip


def relu_then_float() -> Parts:
    """What ends the integers reads them behind the ReLU."""
    return [
        node("Conv", "x w b", "a", **PADS), node("Relu", "a", "r"), node("Sqrt", "r", "y"),
    ], {"w": random(8, 3, 3, 3), "b": random(8)}, {}  # fmt: skip


def batch_norms() -> Parts:
    """One that can be folded, and one of a value that is read elsewhere too."""
    norm = {"g": random(6), "h": random(6), "m": random(6), "s": 0.1 + random(6) ** 2}
    return [
        node("Conv", "x w b", "a", **PADS), node("BatchNormalization", "a g h m s", "n"),
        node("Relu", "n", "r"), node("Conv", "r v", "c", **PADS),
        node("BatchNormalization", "c g h m s", "d"), node("Add", "c d", "e"),
        node("Conv", "e u", "y"),
    ], {
        "w": random(6, 3, 3, 3), "b": random(6), "v": random(6, 6, 3, 3), "u": random(4, 6, 1, 1),
        **norm,
    }, {}  # fmt: skip


def identity() -> Parts:
    return _after("Identity")


def odd_names() -> Parts:
    """Spaces, slashes, dots, and the names that ours would have."""
    return [
        node("Conv", "x w b", "a", "block/a conv", **PADS), node("Relu", "a", "x_codes", "a.b/c d"),
        node("Conv", "x_codes x_scale", "y", "x_rounded"),
    ], {"w": random(8, 3, 3, 3), "b": random(8), "x_scale": random(5, 8, 3, 3)}, {}  # fmt: skip


def in_a_function() -> Parts:
    """A function of the file between two convolutions, with nodes that may be integers."""
    opset = helper.make_opsetid("", 13)
    twice = helper.make_function(
        "own", "Twice", ["p"], ["q"],
        [helper.make_node("Add", ["p", "p"], ["m"]), helper.make_node("Sigmoid", ["m"], ["q"])],
        [opset],
    )  # fmt: skip
    nodes, weights, _ = conv_relu()
    call = helper.make_node("Twice", ["a"], ["r"], domain="own")
    return [nodes[0], call, nodes[2]], weights, {"functions": [twice], "domains": ["own"]}


def _branch(name: str, kind: str) -> onnx.GraphProto:
    made = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph([node(kind, "r", name)], name, [], [made])


def in_a_branch() -> Parts:
    """A value that a graph inside of a node reads, and one that is an input of the whole graph."""
    nodes, weights, _ = conv_relu()
    chosen = helper.make_node(
        "If", ["on"], ["z"], then_branch=_branch("then", "Abs"), else_branch=_branch("else", "Neg")
    )
    return [*nodes, chosen], {**weights, "on": np.array(True)}, {"outputs": ("y", "z")}


NETS: dict[str, Callable[[], Parts]] = {
    one.__name__: one
    for one in (
        conv_relu, cp_chain, spatial_chain, residual, concat, global_pool, gemms, matmul, grouped,
        dilated, uneven_pads, one_d, three_d, silu, transposed, two_inputs, two_outputs,
        read_output, channels_last, batch_of_one, batch_of_four, one_by_one, shared,
        relu_then_float, batch_norms, identity, odd_names, in_a_function, in_a_branch,
    )
} | {
    "max pool": lambda: _after("MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
    "average pool": lambda: _after("AveragePool", kernel_shape=[2, 2], strides=[1, 1]),
    "clip": lambda: _after("Clip", LIMITS),
    "clip of both signs": lambda: _after("Clip", {"low": np.float32(-1), "high": np.float32(2)}),
    "leaky": lambda: _after("LeakyRelu", alpha=0.1),
    "sigmoid": lambda: _after("Sigmoid"),
    "hard swish": lambda: ([*_after("HardSigmoid")[0][:1], node("HardSigmoid", "a", "s"),
                            node("Mul", "a s", "r"), *_after("Identity")[0][2:]],
                           *_after("Identity")[1:]),
}  # fmt: skip


def made_net(path: Path, name: str, **more: Any) -> Path:
    nodes, weights, own = NETS[name]()
    return save(path, nodes, weights, **{**own, **more})
