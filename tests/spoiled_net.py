"""A net between two layers of which one channel is so large that integers keep no other."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx_files import node, random, save

SPOILED = {"a", "b"}
"""They make and read that channel."""


def spoiled(path: Path) -> Path:
    """Three layers more, of which ``first`` can be a chain; the outputs are logits."""
    weights = {
        "first.weight": random(12, 3, 3, 3, scale=0.3), "a.weight": random(8, 12, 3, 3, scale=0.2),
        "b.weight": random(9, 8, 3, 3, scale=0.2), "last.weight": random(10, 9, 1, 1, scale=0.4),
        "fc.weight": random(10, 5),
    }  # fmt: skip
    weights["a.weight"][0] *= 1e4
    weights["b.weight"][:, 0] *= 1e-5
    nodes = [
        node("Conv", "x first.weight", "x1", "first", pads=[1, 1, 1, 1]),
        node("Relu", "x1", "x2"),
        node("Conv", "x2 a.weight", "x3", "a", pads=[1, 1, 1, 1]),
        node("Relu", "x3", "x4"),
        node("Conv", "x4 b.weight", "x5", "b", pads=[1, 1, 1, 1]),
        node("Relu", "x5", "x6"),
        node("Conv", "x6 last.weight", "x7", "last"),
        node("Relu", "x7", "x8"),
        node("GlobalAveragePool", "x8", "x9"),
        node("Flatten", "x9", "x10"),
        node("MatMul", "x10 fc.weight", "y", "fc"),
    ]
    return save(path, nodes, weights)


def in_float(path: Path) -> set[str]:
    """Layers of a file whose weights are floats."""
    graph = onnx.load(path).graph
    codes = {one.output[0] for one in graph.node if one.op_type == "DequantizeLinear"}
    layers = [one for one in graph.node if one.op_type in ("Conv", "MatMul")]
    return {one.name for one in layers if one.input[1] not in codes}
