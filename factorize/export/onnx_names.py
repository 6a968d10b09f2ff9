"""Names in an ONNX graph: of inputs, outputs, axes and layers, and nothing of where it was made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch.export.graph_signature import OutputKind, TensorArgument
from torch.utils._pytree import tree_flatten_with_path, tree_unflatten

from factorize.errors import ExportError
from factorize.export.free_axes import FreeAxes
from factorize.onnx_graph import subgraphs, value_names


def output_names(program: Any, inputs: Sequence[str]) -> list[str]:
    """Names of the tensors that a program puts out: by the keys of a dict, else numbers.

    They are other than those of the inputs.
    """
    specs = [s for s in program.graph_signature.output_specs if s.kind == OutputKind.USER_OUTPUT]
    paths, _ = tree_flatten_with_path(tree_unflatten(specs, program.call_spec.out_spec))
    names: list[str] = []
    for path, spec in paths:
        keys = [str(getattr(one, "key", getattr(one, "idx", one))) for one in path]
        if not keys or keys[0].isdecimal():
            keys.insert(0, "output")
        name = "_".join(keys)
        while name in (*inputs, *names):
            name += "_output"
        if isinstance(spec.arg, TensorArgument):
            names.append(name)
    return names


def name_inputs_and_outputs(graph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give a graph's inputs and outputs names; another value of such a name gets a new one.

    Raises
    ------
    ExportError
        There are not as many names as inputs or outputs, or two are the same.
    """
    for what, names, values in (("input", inputs, graph.input), ("output", outputs, graph.output)):
        if len(names) != len(values):
            raise ExportError(
                f"--{what}-names: must be one for each {what}, {len(values)} in all, got "
                f"{', '.join(names)}."
            )
    both = [*inputs, *outputs]
    if twice := next((name for name in both if both.count(name) > 1), None):
        raise ExportError(
            f"--input-names, --output-names: must be all different, got {twice} twice."
        )
    _own_outputs(graph)
    new = dict(zip((v.name for v in (*graph.input, *graph.output)), both, strict=True))
    used = {*value_names(graph), *both}
    for name in both:
        if name not in new:  # the name of another value
            other = next(f"{name}_{i}" for i in range(len(used)) if f"{name}_{i}" not in used)
            used.add(other)
            new[name] = other
    _rename(graph, new)


def name_axes(graph: Any, axes: FreeAxes) -> None:
    """Call free axes "batch" or "height"; torch.export gave them names like "s77"."""
    names = {axis.symbol: axis.name for axis in axes.axes}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(
                    r"\b[a-z]+\d+\b", lambda m: names.get(m[0], m[0]), dim.dim_param
                )


def strip(model: Any) -> None:
    """Take out what exporters note of where a graph was made: source lines, classes, paths."""
    del model.metadata_props[:]
    model.ClearField("doc_string")
    for graph in (model.graph, *subgraphs(model.graph)):
        for one in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info,
                    *graph.initializer):  # fmt: skip
            one.ClearField("doc_string")
            one.ClearField("metadata_props")
    for function in model.functions:
        function.ClearField("doc_string")
        function.ClearField("metadata_props")
        for node in function.node:
            node.ClearField("doc_string")
            node.ClearField("metadata_props")


def _own_outputs(graph: Any) -> None:
    """Make each output a value that is no input and no other output, as torch 2.6 does not."""
    met = {value.name for value in (*graph.input, *graph.initializer)}
    for index, value in enumerate(graph.output):
        if value.name in met:
            node = graph.node.add(op_type="Identity", input=[value.name], name=f"output_{index}")
            value.name = f"{value.name}_output_{index}"
            node.output.append(value.name)
        met.add(value.name)


def _rename(graph: Any, new: Mapping[str, str]) -> None:
    for one in (graph, *subgraphs(graph)):
        for value in (*one.input, *one.output, *one.value_info, *one.initializer):
            value.name = new.get(value.name, value.name)
        for node in one.node:
            node.input[:] = [new.get(name, name) for name in node.input]
            node.output[:] = [new.get(name, name) for name in node.output]
