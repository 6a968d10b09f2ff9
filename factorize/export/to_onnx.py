"""ONNX: one self-contained file, checked, run and compared before it appears."""

from __future__ import annotations

import ast
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
        Number of convolutions of each replaced layer by name. Each must be just that many
        ``Conv`` nodes in a row, with a ``Pad`` before one only where ONNX's ``Conv`` cannot pad
        like it (`padding_mode` other than zeros, `'same'`).
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
            _check_chain(proto.graph, model, name, stages)
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


def convolution_nodes(graph: Any, model: nn.Module) -> dict[str, list[str]]:
    """Names of the Conv nodes of an exported graph, by each name of the convolution they are of."""
    modules = dict(model.named_modules(remove_duplicate=False))
    nodes: dict[str, list[str]] = {}
    for node in graph.node:
        if node.op_type == "Conv" and (owner := _owner(node, modules)) is not None:
            for name, module in modules.items():
                if module is owner:
                    nodes.setdefault(name, []).append(node.name)
    return nodes


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


def _check_chain(graph: Any, model: nn.Module, layer: str, stages: int) -> None:
    """Check that a replaced layer is `stages` Conv nodes in a row wherever it is called."""
    modules = dict(model.named_modules(remove_duplicate=False))
    chain = modules[layer]
    convolutions = list(chain.children())
    where = (
        f"{layer or '(the model itself)'}: must be {stages} Conv nodes in a row in the ONNX graph"
    )
    fix = "Replace it by nn.Sequential of plain convolutions. Not written."
    if len(convolutions) != stages:
        raise ExportError(f"{where}, got {len(convolutions)} modules. {fix}")

    consumers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    calls = 0
    for node in graph.node:
        owner = _owner(node, modules)
        stage = next((i for i, module in enumerate(convolutions) if module is owner), None)
        inside = any(modules.get(scope) is chain for scope in _scopes(node))
        if node.op_type == "Conv" and stage is not None:
            calls += stage == 0
            after = _after(node, consumers, modules)
            if stage < stages - 1 and (
                node.output[0] in outputs
                or [_owner(next_, modules) for next_ in after] != [convolutions[stage + 1]]
            ):
                got = ", ".join(next_.op_type for next_ in after) or "the model's output"
                raise ExportError(f"{where}, got {got} after its Conv {stage}. {fix}")
        elif inside and node.op_type != "Constant" and not _pads(node, owner):
            raise ExportError(f"{where}, got {node.op_type} among them. {fix}")
    if not calls:
        raise ExportError(f"{where}, got none: the model never calls it. Leave it out of `chains`.")


def _owner(node: Any, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """Return the convolution a node comes from: by its scope, or by the name of its weight.

    The latter is for a convolution that a batch norm was folded into: its scope is that of the
    batch norm. The exporter folds into no weight that several modules share.
    """
    names = _scopes(node)
    if node.op_type == "Conv":
        names.insert(0, node.input[1].removesuffix(".weight"))
    for name in reversed(names):
        module = modules.get(name)
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return module
    return None


def _scopes(node: Any) -> list[str]:
    """Return the names of the modules a node was called in, outermost first."""
    properties = {entry.key: entry.value for entry in node.metadata_props}
    return ast.literal_eval(properties.get("pkg.torch.onnx.name_scopes", "[]"))


def _after(
    node: Any, consumers: Mapping[str, list[Any]], modules: Mapping[str, nn.Module]
) -> list[Any]:
    """Return the nodes that use a node's output, looking through the Pad of a convolution."""
    after = []
    for next_ in consumers.get(node.output[0], ()):
        padded = _pads(next_, _owner(next_, modules))
        after += _after(next_, consumers, modules) if padded else [next_]
    return after


def _pads(node: Any, owner: Any) -> bool:
    """Whether a node is the Pad of a convolution that ONNX's Conv cannot pad like."""
    return (
        node.op_type == "Pad"
        and owner is not None
        and (owner.padding_mode != "zeros" or owner.padding == "same")
    )
