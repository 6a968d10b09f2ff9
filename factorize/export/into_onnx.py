"""Chains and moved tensors put into a copy of the ONNX file that a twin was made of."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from factorize import methods
from factorize.export.external_data import DataFiles
from factorize.onnx_graph import (
    Twin,
    chain_nodes,
    pads_of,
    place_auto_pad,
    place_pads,
    read_names,
    value_names,
)
from factorize.onnx_graph.layers import conv_attributes
from factorize.onnx_graph.onnx_file import external_info, is_external
from factorize.onnx_graph.twin import Step
from factorize.onnx_graph.walk import attributes, reads
from factorize.types import Plan


def write_onnx(original: Twin, compressed: Twin, plan: Plan, path: Path) -> Any:
    """Write the original's file with chains in the place of planned layers.

    Every other node, and every tensor whose values have not changed, is as it was, byte for byte.

    Parameters
    ----------
    compressed
        The twin with the plan's chains in it.
    path
        Data that the original has in files of its own is written beside it, under the same names.

    Returns
    -------
    The ``onnx.ModelProto``.
    """
    writer = _Writer(original)
    planned = {layer.spec.name: layer for layer in plan.factorized}
    before = {step.name: module for step, module in original.layers()}
    for step, module in compressed.layers():
        if step.name in planned:
            stages = methods.chain_of(planned[step.name])
            writer.replace(step, before[step.name], module, stages)
        else:
            writer.move(step, before[step.name], module)
    return writer.save(path)


class _Writer:
    """A copy of the file's proto on its way to another one."""

    def __init__(self, original: Twin) -> None:
        self.file = original.onnx_file
        self.proto = self.file.fresh()
        self.graph = self.proto.graph
        self.nodes: list[Any] = [*self.graph.node]
        self.at = {node.output[0]: node for node in self.nodes if node.output}
        self.tensors = {tensor.name: tensor for tensor in self.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant":
                for one in node.attribute:
                    if one.name == "value":
                        self.tensors[node.output[0]] = one.t
        self.readers = Counter(name for node in self.nodes for name in reads(node))
        self.readers.update(value.name for value in self.graph.output)
        self.names = value_names(self.graph) | {node.name for node in self.nodes}
        self.moved: dict[str, np.ndarray] = {}
        self.added: list[tuple[Any, str]] = []  # each with the old one, which tells where it goes
        self.left: set[str] = set()  # what the replaced nodes read

    def replace(self, step: Step, dense: nn.Module, chain: Any, stages: Any) -> None:
        """Put a chain's nodes in the place of a layer's."""
        node = self.at[step.makes[0]]
        old = self.tensors[node.input[1]]
        bias = ""
        if stages[-1].bias:
            bias = self.read(node, 2, dense.get_parameter("bias"), chain[-1].bias, step)
        stages = [*stages[:-1], replace(stages[-1], bias=False)] if bias else stages
        weights = [self.array(_weight_of(module, spec), old)
                   for module, spec in zip(chain, stages, strict=True)]  # fmt: skip
        new, tensors = chain_nodes(
            stages, node.input[0], node.output[0], self.unused(f"{step.name}.chain"), bias, weights
        )
        if node.op_type.startswith("Conv"):
            _pad(new, stages, node)
        at = next(i for i, one in enumerate(self.nodes) if one is node)
        self.nodes[at : at + 1] = new
        self.added += [(tensor, node.input[1]) for tensor in tensors]
        self.names |= {name for one in new for name in (one.name, *one.output)}
        self.left |= {name for name in node.input[1:] if name != bias}

    def move(self, step: Step, before: nn.Module, after: nn.Module) -> None:
        """Write the tensors of a layer whose values have changed."""
        assert step.layer is not None
        old = {**dict(before.named_parameters()), **dict(before.named_buffers())}
        new = {**dict(after.named_parameters()), **dict(after.named_buffers())}
        node = self.at.get(step.makes[0])
        for name, (index, swap) in step.layer.tensors.items():
            if node is not None:
                node.input[index] = self.read(node, index, old[name], new[name], step, swap=swap)

    def read(
        self,
        node: Any,
        index: int,
        before: Tensor,
        after: Tensor,
        step: Step,
        *,
        swap: bool = False,
    ) -> str:
        """The name of the tensor that a node is to read: its own, where nobody else reads it."""
        name = node.input[index]
        if _equal(before, after):
            return name
        after = after.T if swap else after
        own = self.tensors.get(name)
        if own is not None and self.readers[name] == 1:
            self.moved[name] = self.array(after.reshape(tuple(own.dims)), own)
            return name
        from onnx import numpy_helper

        source = own or self.file.constants.get(name) or self.file.constants[self.alias(name)]
        new = self.unused(f"{step.name}.{index}")
        self.names.add(new)
        array = self.array(after.reshape(tuple(source.dims)), source)
        self.added.append((numpy_helper.from_array(array, new), name))
        self.left.add(name)
        return new

    def alias(self, name: str) -> str:
        """What an Identity of a constant is one of."""
        while name not in self.file.constants:
            name = self.at[name].input[0]
        return name

    def array(self, value: Tensor | None, old: Any) -> np.ndarray:
        """Values as the file has those of an old tensor; those of a stage without any are none."""
        from onnx import helper

        if value is None:
            return np.empty(0, np.float32)
        kind = helper.tensor_dtype_to_np_dtype(old.data_type)
        return value.detach().cpu().numpy().astype(kind)

    def unused(self, name: str) -> str:
        """A name that nothing in the graph begins with."""
        while any(one.startswith(name) for one in self.names):
            name += "_"
        return name

    def save(self, path: Path) -> Any:
        """Write the file, and the data beside it."""
        import onnx

        graph, unread = self.graph, self.left - read_names(self.graph, self.nodes)
        nodes = [node for node in self.nodes
                 if not (node.op_type == "Constant" and node.output[0] in unread)]  # fmt: skip
        kept = [tensor for tensor in graph.initializer if tensor.name not in unread]
        data = DataFiles(self.file, path.parent, iter(
            [*kept, *(a.t for n in nodes for a in n.attribute if a.HasField("t"))]
        ))  # fmt: skip
        for name, array in self.moved.items():
            tensor = self.tensors[name]
            if is_external(tensor):
                data.overwrite(tensor, array.tobytes())
            else:
                _refill(tensor, array)
        for tensor, like in self.added:
            old = self.tensors.get(like)
            if old is not None and is_external(old):
                data.add(tensor, tensor.raw_data, external_info(old).location)
        data.end()
        new = [tensor for tensor, _ in self.added]
        gone = {name for name in unread if name in self.tensors}
        inputs = [value for value in graph.input if value.name not in gone]
        if self.proto.ir_version < 4:  # where every initializer is an input too
            inputs += [
                onnx.helper.make_tensor_value_info(t.name, t.data_type, [*t.dims]) for t in new
            ]
        known = [value for value in graph.value_info if value.name not in gone]
        _refilled(graph, "node", nodes)
        for index in reversed(range(len(graph.initializer))):  # not copied: they may be large
            if graph.initializer[index].name in gone:
                del graph.initializer[index]
        graph.initializer.extend(new)
        _refilled(graph, "input", inputs)
        _refilled(graph, "value_info", known)
        path.write_bytes(self.proto.SerializeToString())
        return self.proto


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.detach().cpu(), other.detach().cpu())


def _weight_of(module: Any, spec: Any) -> Tensor | None:
    """As its node reads it; None of a channel shuffle."""
    if spec.kind == "channel_shuffle":
        return None
    return module.weight if spec.kernel else module.weight.T


def _pad(nodes: list[Any], stages: Any, node: Any) -> None:
    """Pad a chain as the node pads that it replaces, each axis at the stage that has it."""
    ours = np.sum([np.concatenate(pads_of(stage)) for stage in stages if stage.kernel], axis=0)
    given = conv_attributes(attributes(node), len(ours) // 2)
    if given["auto_pad"].startswith("SAME"):
        place_auto_pad(nodes, node)
    else:
        place_pads(nodes, stages, np.array(given["pads"]) - ours)


def _refill(tensor: Any, array: np.ndarray) -> None:
    """Give a tensor other values, and leave all else of it as it is."""
    for field in ("float_data", "double_data", "int32_data", "raw_data"):
        tensor.ClearField(field)
    tensor.raw_data = array.tobytes()


def _refilled(graph: Any, field: str, values: list[Any]) -> None:
    """Give a repeated field other entries, some of which it may have now."""
    copies = [type(value).FromString(value.SerializeToString()) for value in values]
    graph.ClearField(field)
    getattr(graph, field).extend(copies)
