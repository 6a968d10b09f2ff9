"""ONNX: one self-contained file, checked, run and compared before it appears."""

from __future__ import annotations

import sys
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
from factorize.export.comparison import compare
from factorize.export.onnx_names import name_axes, name_inputs_and_outputs, output_names, strip
from factorize.export.onnx_nodes import check_chain, name_layers
from factorize.export.publish import publishing
from factorize.export.traces import Traced, Traces, first_line, quiet
from factorize.tensor.call import model_dtype

_LIMIT = 2**31 - 2**20  # bytes of weights; protobuf ends at 2 GiB, the graph is in there too

_TORCH_2_6 = {"onnxscript": "0.3", "protobuf": "7"}  # the first that its exporter fails with


@dataclass(frozen=True)
class OnnxConfig:
    """How an ONNX file is written.

    Attributes
    ----------
    opset
        Version of the operators. None: the exporter's own.
    input_names, output_names
        One for each. None: the names of the parameters of `forward`, and the keys of the dict that
        it gives, else ``output``, or ``output_0``, ``output_1``, ...
    half
        Whether the file holds weights and computes in float16. Inputs and outputs stay float32.
    """

    opset: int | None = None
    input_names: tuple[str, ...] | None = None
    output_names: tuple[str, ...] | None = None
    half: bool = False


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
    free_axes
        Axes of the inputs that may have any size: ``("batch", "height", "width")``.
    input_sizes
        The same in words, with what is known of steps, and the sizes of the axes that are not free.
    """

    nodes: dict[str, int]
    max_abs: float
    max_rel: float
    tolerance: float
    bytes: int
    opset: int
    free_axes: tuple[str, ...]
    input_sizes: str

    @property
    def dynamic_batch(self) -> bool:
        """Whether the file takes any batch size; else only that of the example input."""
        return "batch" in self.free_axes


def export_onnx(
    model: nn.Module,
    example_input: Any,
    path: str | Path,
    *,
    chains: Mapping[str, int] = {},
    config: OnnxConfig = OnnxConfig(),
    force: bool = False,
    traces: Traces | None = None,
) -> OnnxCheck:
    """Export a model to one ONNX file with free batch and image sizes, where the model allows it.

    The file is written only after ``onnx.checker`` passed it and a process that has ONNX Runtime
    alone got PyTorch's outputs from it for random input: at batch 1 and 3 and at another size,
    where these are free.

    Parameters
    ----------
    model, example_input
        Exported in eval mode from the CPU; the model itself stays as it is. Numbers, texts and
        booleans among the arguments are frozen.
    chains
        Number of stages of each replaced layer by name. Each must be just that many ``Conv`` nodes
        in a row (``ConvTranspose``; ``Gemm`` or ``MatMul`` and ``Add`` of a linear layer;
        ``Reshape`` and ``Transpose`` of a channel shuffle), with a ``Pad`` before one only where
        ONNX's ``Conv`` cannot pad like it (`padding_mode` other than zeros, `'same'`).
    force
        Whether an existing file is overwritten.
    traces
        Of this model and input, where a file of another kind is made of them too.

    Raises
    ------
    ExportError
        If the model cannot be exported, ONNX Runtime refuses the graph, outputs differ or a
        replaced layer is anything else than its convolutions.
    OutputError
        If the file exists or cannot be written.
    """
    _check_weights(model, path, config)
    with publishing(path, force) as temporary:
        return (traces or Traces(model, example_input)).first(
            lambda traced: _write(traced, temporary, path, chains, config)
        )


def _check_weights(model: nn.Module, path: str | Path, config: OnnxConfig) -> None:
    dtype = model_dtype(model)
    if dtype == torch.bfloat16:
        raise ExportError(
            f"{path}: must be float32, float64 or float16, as ONNX Runtime has no bfloat16 "
            "convolution on the CPU, got bfloat16. Export model.float()."
        )
    if config.half and dtype not in (torch.float32, torch.float16):
        raise ExportError(
            f"{path}: a model to be written in float16 must be float32, got {dtype}. "
            "Export model.float()."
        )
    size = sum(v.nbytes for v in (*model.parameters(), *model.buffers()))
    if size > _LIMIT:
        raise ExportError(
            f"{path}: weights must be under 2 GiB to fit one ONNX file, got {size / 2**30:.2f} "
            "GiB. Use export_program."
        )


def _write(
    traced: Traced, file: Path, path: str | Path, chains: Mapping[str, int], config: OnnxConfig
) -> OnnxCheck:
    import onnx

    model = traced.called.model
    try:
        with quiet():
            exported = torch.onnx.export(
                traced.program, dynamo=True, optimize=True, verbose=False,
                opset_version=config.opset,
            )  # fmt: skip
            assert exported is not None  # it is only without dynamo
            proto = exported.model_proto
        _lift_constants(proto.graph)
    except Exception as error:  # torch has dozens of them
        raise ExportError(
            f"{path}: the model must be expressible in ONNX, got {first_line(error)}. "
            f"{_mismatch()}Not written."
        ) from error
    opset = next(entry.version for entry in proto.opset_import if not entry.domain)
    if config.opset not in (None, opset):
        raise ExportError(
            f"{path}: --opset must be one that torch's exporter can convert the model to, got "
            f"{config.opset}; {opset} works. Not written."
        )
    for name, stages in chains.items():
        check_chain(proto.graph, model, name, stages, traced.program)
    name_layers(proto.graph, model)
    inputs = config.input_names or tuple(traced.called.tensors)
    name_inputs_and_outputs(
        proto.graph, inputs, config.output_names or output_names(traced.program, inputs)
    )
    name_axes(proto.graph, traced.axes)
    strip(proto)
    try:
        if config.half and model_dtype(model) == torch.float32:
            proto = _halved(proto)
        onnx.checker.check_model(proto)
        onnx.save(proto, file)
    except Exception as error:  # onnx has dozens of them
        raise ExportError(
            f"{path}: the model must be expressible in ONNX, got {first_line(error)}. "
            f"{_mismatch()}Not written."
        ) from error
    max_abs, max_rel, tolerance = compare(
        traced.called, [*traced.inputs()], file, "onnxruntime", path, half=config.half
    )
    return OnnxCheck(
        nodes=dict(Counter(node.op_type for node in proto.graph.node).most_common()),
        max_abs=max_abs,
        max_rel=max_rel,
        tolerance=tolerance,
        bytes=file.stat().st_size,
        opset=opset,
        free_axes=traced.axes.names,
        input_sizes=traced.axes.words(),
    )


def _halved(proto: Any) -> Any:
    """Return a graph with weights and inner values in float16, its inputs and outputs as before."""
    before = [*sys.path]
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    finally:
        sys.path[:] = before  # the package puts its own folder there
    with quiet():
        proto = convert_float_to_float16(proto, keep_io_types=True)
    _sort(proto.graph)  # it puts its casts last
    return proto


def _sort(graph: Any) -> None:
    """Put each node behind those that make its inputs, as the format wants it."""
    made = {"", *(value.name for value in (*graph.input, *graph.initializer))}
    ordered, waiting = [], [*graph.node]
    while waiting:
        left = []
        for node in waiting:
            if made.issuperset(node.input):
                ordered.append(node)
                made.update(node.output)
            else:
                left.append(node)
        if len(left) == len(waiting):
            return  # the checker says which it is
        waiting = left
    del graph.node[:]
    graph.node.extend(ordered)


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
