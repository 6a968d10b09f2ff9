"""The twin of an ONNX file: a torch module that computes the same, its layers modules too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from factorize.onnx_graph.layers import Layer
from factorize.onnx_graph.onnx_file import OnnxFile
from factorize.onnx_graph.operators import Operator, Reshape
from factorize.tensor.twins import joined


@dataclass(frozen=True)
class Step:
    """One node, as the twin runs it.

    Attributes
    ----------
    name
        Of its module, which is the node's name, or its output's; dots lead into modules.
    reads
        Names of the values that it reads, ``""`` for one left out.
    layer
        How the module is called, where the node is a layer or a batch norm.
    operator
        What computes it, where that is no module.
    around
        Values that graphs inside of the node read.
    last
        Values that nobody reads after it.
    """

    name: str
    kind: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    layer: Layer | None = None
    operator: Operator | None = None
    around: tuple[str, ...] = ()
    last: tuple[str, ...] = ()


@dataclass
class Form:
    """How the twin is called.

    Attributes
    ----------
    batch
        Of the file, where it is fixed; 0 where it is free.
    one_by_one
        Whether a batch goes through sample by sample.
    channels_last
        Inputs that the file wants as (N, H, W, C); the twin takes (N, C, H, W).
    """

    batch: int = 0
    one_by_one: bool = False
    channels_last: frozenset[str] = field(default_factory=frozenset)


class Nodes(nn.Module):
    """Nodes of a file with their layers and constants.

    Attributes
    ----------
    onnx_steps
        The nodes in order.
    """

    def __init__(
        self, steps: Sequence[Step], modules: Mapping[str, nn.Module],
        constants: Mapping[str, Tensor],
    ) -> None:  # fmt: skip
        super().__init__()
        self.onnx_steps = _with_ends(steps)
        self.onnx_constants = nn.Module()
        self.onnx_numbers: dict[str, str] = {}
        for number, (name, value) in enumerate(constants.items()):
            self.onnx_numbers[name] = str(number)
            self.onnx_constants.register_buffer(str(number), value, persistent=False)
        for path, module in modules.items():
            *folders, last = path.split(".")
            parent: nn.Module = self
            for part in folders:
                parent = parent._modules.setdefault(part, nn.Module())  # type: ignore[assignment]
            parent._modules[last] = module
        self.eval()

    def constants(self) -> dict[str, Any]:
        """Values that are there before the first node, by name."""
        held = self.onnx_constants._buffers
        return {"": None} | {name: held[number] for name, number in self.onnx_numbers.items()}

    def compute(self, step: Step, values: Mapping[str, Any]) -> dict[str, Any]:
        """What one node makes of the values before it, by name."""
        read = [values[name] for name in step.reads]
        if step.layer is not None:
            made = step.layer(self.module_of(step), read[0])
        elif step.operator is not None:
            made = step.operator(*read)
        else:
            module: Any = self.module_of(step)
            made = module(*read, around=values) if module.nested else module(*read)
        return dict(zip(step.makes, made if isinstance(made, tuple) else (made,), strict=False))

    def module_of(self, step: Step) -> nn.Module:
        """The module in a step's place: the layer, or the chain that replaced it."""
        module: Any = self
        for part in step.name.split("."):
            module = module._modules[part]
        return module


class Twin(Nodes):
    """Takes the file's inputs, in order or by name, and gives its outputs, several by name.

    Attributes
    ----------
    onnx_file
        What it is the twin of. Copies of the twin share it.
    onnx_form
        How it is called.
    """

    def __init__(
        self,
        file: OnnxFile,
        steps: Sequence[Step],
        modules: Mapping[str, nn.Module],
        constants: Mapping[str, Tensor],
        form: Form,
    ) -> None:
        super().__init__(steps, modules, constants)
        self.onnx_file, self.onnx_form = file, form

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run the nodes; one output alone, several as a dict."""
        outputs = self.values(self.given(*inputs, **named), self.outputs)
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))

    @property
    def outputs(self) -> list[str]:
        """Names of the values that it gives."""
        return [value.name for value in self.onnx_file.proto.graph.output]

    def given(self, *inputs: Any, **named: Any) -> dict[str, Any]:
        """Its inputs by name."""
        names = [value.name for value in self.onnx_file.inputs]
        return dict(zip(names, inputs, strict=False)) | named

    def values(self, given: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
        """Some values of the graph, by name, for inputs by name."""
        first = next((v for v in given.values() if isinstance(v, Tensor) and v.ndim), None)
        samples = 1 if first is None else first.shape[0]
        if not self.onnx_form.one_by_one or samples == 1:
            return self._run(given, wanted)
        runs = [
            self._run({n: v[i : i + 1] for n, v in given.items()}, wanted) for i in range(samples)
        ]
        return {name: joined([one[name] for one in runs]) for name in wanted}

    def _run(self, given: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
        values = self.begin(given)
        kept = {*wanted}
        missing = kept - values.keys()
        for step in self.onnx_steps:
            made = self.compute(step, values)
            values.update(made)
            missing -= made.keys()
            if not missing:
                break
            for name in step.last:
                if name not in kept:
                    values.pop(name, None)
        return {name: values[name] for name in wanted}

    def begin(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the graph before its first node: constants, and inputs by name."""
        values = self.constants()
        for name, value in given.items():
            turned = name in self.onnx_form.channels_last
            values[name] = value.movedim(1, -1) if turned else value
        return values

    def layers(self) -> Iterator[tuple[Step, nn.Module]]:
        """The steps that are layers or batch norms, and what is in their places."""
        for step in self.onnx_steps:
            if step.layer is not None:
                yield step, self.module_of(step)

    def fed(self, example_input: Any) -> dict[str, Tensor]:
        """An input of the twin as the file takes it, by name."""
        from onnx import helper

        tensors = example_input
        if not isinstance(example_input, Mapping):
            tensors = example_input if isinstance(example_input, tuple) else (example_input,)
            names = [value.name for value in self.onnx_file.inputs]
            tensors = dict(zip(names, tensors, strict=True))
        fed = {}
        for value in self.onnx_file.inputs:
            tensor = tensors[value.name]
            if value.name in self.onnx_form.channels_last:
                tensor = tensor.movedim(1, -1)
            kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            fed[value.name] = tensor.to(getattr(torch, kind.name))
        return fed

    def named_nodes(self) -> tuple[Any, dict[str, list[str]]]:
        """The file's proto, its data in it and its layers' nodes named, and their names by layer.

        For timing: it is not the file.
        """
        import onnx

        proto = self.onnx_file.fresh()
        onnx.load_external_data_for_model(proto, str(self.onnx_file.path.parent))
        proto.ir_version = max(proto.ir_version, 4)  # where a new initializer is no input
        names = {step.makes[0]: step.name for step, _ in self.layers()}
        for node in proto.graph.node:
            if node.output and node.output[0] in names:
                node.name = names[node.output[0]]
        return proto, {name: [name] for name in names.values()}

    def free_batch_(self) -> None:
        """Let reshapes to the file's fixed batch keep whatever batch there is, in place."""
        self.onnx_steps = tuple(
            replace(step, operator=step.operator.free(self.onnx_form.batch))
            if isinstance(step.operator, Reshape)
            else step
            for step in self.onnx_steps
        )

    def extra_repr(self) -> str:
        """The file."""
        return str(self.onnx_file.path)


def _with_ends(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps, each with the values that nobody reads after it."""
    later: set[str] = {""}
    ended: list[Step] = []
    for step in reversed(steps):
        own = {*step.reads, *step.makes, *step.around}
        ended.append(replace(step, last=tuple(sorted(own - later))))
        later |= own
    return tuple(reversed(ended))
