"""ONNX: one self-contained file, checked, run and compared before it appears."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.torch_version import TorchVersion

from factorize.errors import ExportError
from factorize.export.onnx_nodes import check_chain
from factorize.export.program import compare, first_line, quiet, trace
from factorize.export.publish import publishing
from factorize.tensor.call import model_dtype, onnx_feeds, onnx_session

_LIMIT = 2**31 - 2**20  # bytes of weights; protobuf ends at 2 GiB, the graph is in there too

_TORCH_2_6 = {"onnxscript": "0.3", "protobuf": "7"}  # the first that its exporter fails with


@dataclass(frozen=True)
class OnnxCheck:
    """What is known of an exported ONNX file.

    Attributes
    ----------
    nodes
        Number of nodes by operator.
    max_abs, max_rel
        Largest difference from PyTorch of any output element, absolute and as a share of the
        largest element of its output tensor.
    tolerance
        The most that `max_rel` may be.
    dynamic_batch
        Whether the file takes any batch size; else only that of the example input.
    """

    nodes: dict[str, int]
    max_abs: float
    max_rel: float
    tolerance: float
    bytes: int
    opset: int
    dynamic_batch: bool


def export_onnx(
    model: nn.Module,
    example_input: Any,
    path: str | Path,
    *,
    chains: Mapping[str, int] = {},
    force: bool = False,
) -> OnnxCheck:
    """Export a model to one ONNX file with a free batch size, where the model allows one.

    The file is written only after ``onnx.checker`` passed it and ONNX Runtime's CPU provider gave
    PyTorch's outputs for random input at batch 1 and 3.

    Parameters
    ----------
    model, example_input
        Exported in eval mode from the CPU; the model itself stays as it is.
    chains
        Number of stages of each replaced layer by name. Each must be just that many ``Conv`` nodes
        in a row (``ConvTranspose``; ``Gemm`` or ``MatMul`` and ``Add`` of a linear layer;
        ``Reshape`` and ``Transpose`` of a channel shuffle), with a ``Pad`` before one only where
        ONNX's ``Conv`` cannot pad like it (`padding_mode` other than zeros, `'same'`).
    force
        Whether an existing file is overwritten.

    Raises
    ------
    ExportError
        If the model cannot be exported, ONNX Runtime refuses the graph, outputs differ or a
        replaced layer is anything else than its convolutions.
    OutputError
        If the file exists or cannot be written.
    """
    import onnx

    if model_dtype(model) == torch.bfloat16:
        raise ExportError(
            f"{path}: must be float32, float64 or float16, as ONNX Runtime has no bfloat16 "
            "convolution on the CPU, got bfloat16. Export model.float()."
        )
    size = sum(v.nbytes for v in (*model.parameters(), *model.buffers()))
    if size > _LIMIT:
        raise ExportError(
            f"{path}: weights must be under 2 GiB to fit one ONNX file, got {size / 2**30:.2f} "
            "GiB. Use export_program."
        )
    with publishing(path, force) as temporary:
        program, dynamic = trace(model, example_input)
        try:
            with quiet():
                exported = torch.onnx.export(program, dynamo=True, optimize=True, verbose=False)
                assert exported is not None  # it is only without dynamo
                proto = exported.model_proto
            _lift_constants(proto.graph)
            if dynamic:
                _name_batch(proto.graph)
            onnx.checker.check_model(proto)
            onnx.save(proto, temporary)
            session = onnx_session(temporary)
        except Exception as error:  # torch, onnx and onnxruntime have dozens of them
            raise ExportError(
                f"{path}: the model must be expressible in ONNX, got {first_line(error)}. "
                f"{_mismatch()}Not written."
            ) from error
        for name, stages in chains.items():
            check_chain(proto.graph, model, name, stages, program)
        max_abs, max_rel, tolerance = compare(
            model,
            lambda inputs: session.run(None, onnx_feeds(session, inputs)),
            example_input,
            dynamic,
            path,
        )
        return OnnxCheck(
            nodes=dict(Counter(node.op_type for node in proto.graph.node).most_common()),
            max_abs=max_abs,
            max_rel=max_rel,
            tolerance=tolerance,
            bytes=temporary.stat().st_size,
            opset=next(entry.version for entry in proto.opset_import if not entry.domain),
            dynamic_batch=dynamic,
        )


def _mismatch() -> str:
    """Say what to install where torch's exporter is older than the packages it calls."""
    if torch.__version__ >= "2.7":
        return ""
    newer = [name for name, end in _TORCH_2_6.items() if TorchVersion(version(name)) >= end]
    if not newer:
        return ""
    wanted = " ".join(f"'{name}<{_TORCH_2_6[name]}'" for name in newer)
    return f"With torch {torch.__version__}: pip install {wanted}. "


def _lift_constants(graph: Any) -> None:
    """Make initializers of the Constant nodes that torch 2.6 leaves, as later ones do."""
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
            del graph.node[index]


def _name_batch(graph: Any) -> None:
    """Call the free axis "batch": torch.export gave it a name like "s77"."""
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == symbol:
                dim.dim_param = "batch"
