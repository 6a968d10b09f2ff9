"""Small ONNX files made on the spot, and what the door makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from factorize.export.onnx_back import export_back
from factorize.models.load_model import load_model
from factorize.onnx_graph import Twin
from factorize.run.make_plan import make_plan
from factorize.run.steps import rewrite
from factorize.tensor.call import onnx_session
from factorize.types import Plan

RNG = np.random.default_rng(0)


def random(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(sum(shape)).standard_normal(shape)).astype(np.float32)


def node(kind: str, reads: str, makes: str, name: str = "", **attributes: Any) -> NodeProto:
    return helper.make_node(kind, reads.split(), makes.split(), name, **attributes)


def save(
    path: Path,
    nodes: Sequence[NodeProto],
    weights: Mapping[str, np.ndarray],
    *,
    inputs: Mapping[str, Sequence[Any]] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 13,
    ir_version: int = 8,
    kind: int = TensorProto.FLOAT,
    domains: Sequence[str] = (),
    **more: Any,
) -> Path:
    inputs = inputs or {"x": ("N", 3, 9, 10)}
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
        doc_string="a net",
        value_info=[helper.make_tensor_value_info(nodes[0].output[0], kind, None)],
    )  # fmt: skip
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(one, opset) for one in ("", *domains)],
        ir_version=ir_version, producer_name="a tool", **more,
    )  # fmt: skip
    helper.set_model_props(model, {"classes": "many"})
    onnx.save(model, path)
    return path


def net(path: Path, **more: Any) -> Path:
    """Convolutions of several kinds, batch norms that are not folded, and linear layers."""
    weights = {
        "first.weight": random(16, 3, 3, 3, scale=0.3), "first.bias": random(16),
        "even.weight": random(16, 16, 3, 3, scale=0.1),
        "same.weight": random(24, 16, 3, 3, scale=0.1), "same.bias": random(24),
        "up.weight": random(24, 8, 4, 4, scale=0.1), "up.bias": random(8),
        "scale": 1 + random(16, scale=0.1), "shift": random(16), "mean": random(16),
        "var": 1 + random(16) ** 2,
        "fc.weight": random(12, 8), "fc.bias": random(12),
        "last.weight": random(12, 10), "plus": random(10),
    }  # fmt: skip
    nodes = [
        node("Conv", "x first.weight first.bias", "a", "first/Conv", pads=[0, 1, 1, 2]),
        node("Relu", "a", "b"),
        node("Conv", "b even.weight", "c", "block.even", pads=[1, 1, 1, 1], doc_string="mine"),
        node("BatchNormalization", "c scale shift mean var", "d", "norm", epsilon=1e-3),
        node("Relu", "d", "e"),
        node(
            "Conv", "e same.weight same.bias", "f", auto_pad="SAME_UPPER", strides=[2, 2],
        ),
        node("Relu", "f", "g"),
        node("ConvTranspose", "g up.weight up.bias", "h", "up", strides=[2, 2], pads=[1, 0, 2, 1]),
        node("GlobalAveragePool", "h", "i"),
        node("Flatten", "i", "j"),
        node("Gemm", "j fc.weight fc.bias", "k", "fc", transB=1),
        node("MatMul", "k last.weight", "l", "last"),
        node("Add", "l plus", "y", "add"),
    ]  # fmt: skip
    return save(path, nodes, weights, inputs={"x": ("N", 3, "H", "W")}, **more)


def twin_of(path: Path, x: Any) -> Twin:
    loaded = load_model(path)
    assert loaded.check is not None
    loaded.check(x)
    assert isinstance(loaded.model, Twin)
    return loaded.model


def image(*shape: int) -> Tensor:
    return torch.randn(*(shape or (1, 3, 9, 10)), generator=torch.Generator().manual_seed(0))


def written(path: Path, out: Path, x: Any, **wish: Any) -> Plan:
    """Write the file with chains, fitted to the weights, to ``out``."""
    twin = twin_of(path, x)
    plan = make_plan(twin, x, **{"rank": 10**6, "allow_costlier": True, "include": ["*"], **wish})
    small = rewrite(twin, plan)
    assert isinstance(small, Twin)
    out.parent.mkdir(exist_ok=True)
    export_back(twin, small, plan, x, out)
    return plan


def run(path: Path, x: Any) -> list[np.ndarray]:
    session = onnx_session(path, 1)
    values = x if isinstance(x, dict) else {session.get_inputs()[0].name: x}
    return session.run(None, {name: value.numpy() for name, value in values.items()})


def external(path: Path) -> Path:
    """The net with its data in a file beside it."""
    onnx.save(
        onnx.load(net(path)), path, save_as_external_data=True, location="net.data",
        size_threshold=0,
    )  # fmt: skip
    return path


def apart(one: Path, two: Path, x: Any) -> float:
    """Largest difference of two files' outputs, relative to the largest value."""
    pairs = zip(run(one, x), run(two, x), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)
