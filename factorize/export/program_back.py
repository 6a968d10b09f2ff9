"""Chains written into a copy of the exported program that a net came in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument
from torch.utils._pytree import tree_flatten, tree_unflatten

from factorize.errors import ExportError
from factorize.export.comparison import compare
from factorize.export.free_axes import FreeAxes, free_axes, resized
from factorize.export.plain_call import PlainCall
from factorize.export.program import save_program
from factorize.export.publish import publishing
from factorize.export.traces import checked_axes, first_line
from factorize.program import LayerCall, ProgramTwin, call_of
from factorize.program.check_twin import user_inputs
from factorize.tensor.call import input_on, model_on
from factorize.types import Plan


def export_program_back(
    compressed: ProgramTwin, plan: Plan, example_input: Any, path: str | Path
) -> tuple[str, ...]:
    """Save a compressed twin as the program that it came from, with chains for layers.

    Inputs, outputs, their names and free sizes are those of the original, and so is every call
    but those of the replaced layers.

    Returns
    -------
    tuple of str
        The axes of the inputs that are free.

    Raises
    ------
    ExportError
        If the program cannot be saved, or the saved one differs from the twin.
    """
    compressed = model_on(compressed, "cpu")  # type: ignore[assignment]
    try:
        written = _Writing(compressed, plan).program()
    except Exception as error:  # torch checks a program in dozens of ways
        raise ExportError(
            f"{path}: chains must fit into the program, got {first_line(error)}. Not written."
        ) from error
    called = _ProgramCall.of(compressed, written, input_on(example_input, "cpu"))
    axes = _axes(called, written)
    with publishing(path, False) as temporary:
        save_program(written, temporary, path)
        compare(called, [*_inputs(called, axes)], temporary, "torch", path)
    return axes.names


class _Writing:
    """A program on its way to another one."""

    def __init__(self, twin: ProgramTwin, plan: Plan) -> None:
        self.twin, self.form = twin, twin.program_form
        self.old = self.form.program()
        self.example = self._example()  # of the inputs that it has before any are added
        self.graph = self.old.graph_module.graph
        self.nodes = {node.name: node for node in self.graph.nodes}
        self.fake = detect_fake_mode(
            [node.meta["val"] for node in self.graph.nodes if node.meta.get("val") is not None]
        )
        self.specs = [*self.old.graph_signature.input_specs]
        self.outputs = [*self.old.graph_signature.output_specs]
        self.state: dict[str, Tensor] = dict(self.old.state_dict)
        self.replaced = {layer.spec.name for layer in plan.factorized}

    def program(self) -> ExportedProgram:
        """The new program: its calls, its signature and its values."""
        own = {**self.twin.state_dict(keep_vars=True)}
        for name, call in self.form.layers.items():
            module = self.twin.get_submodule(name)
            if name in self.replaced:
                self._replace(name, call, module)
            else:
                own |= {key: getattr(module, one) for one, key in call.tensors.items()}
        for key, value in self.state.items():
            if key in own and own[key].shape == value.shape:
                self.state[key] = _like(value, own[key])
        old = self.old
        old.graph_module.recompile()
        made = ExportedProgram(
            old.graph_module, self.graph,
            ExportGraphSignature(self.specs, self.outputs), self.state,
            old.range_constraints, old.module_call_graph, self.example, old.constants,
            verifiers=old.verifiers,
        )  # fmt: skip
        if hasattr(old, "_guards_code"):  # since torch 2.9; a program is checked by them
            made._guards_code = old._guards_code
        return made

    def _replace(self, name: str, call: LayerCall, chain: nn.Module) -> None:
        """Put the stages of a chain in the place of a call."""
        (node,) = (self.nodes[one] for one in call.nodes)
        given = node.args[0] if node.args else node.kwargs["input"]
        value: Any = given
        for number, stage in chain.named_children():
            held = [
                self._parameter(f"{name}.{number}.{key}", getattr(stage, key, None), call)
                for key in ("weight", "bias")
            ]
            operator, more = call_of(stage)
            if isinstance(stage, nn.ChannelShuffle):
                held = []
            with self.graph.inserting_before(node):
                value = self.graph.call_function(operator, (value, *held, *more))
            value.meta = {"val": self._value(value)}
        node.replace_all_uses_with(value)
        self.outputs = [
            replace(spec, arg=TensorArgument(name=value.name))
            if spec.arg.name == node.name  # type: ignore[union-attr]
            else spec
            for spec in self.outputs
        ]
        read = node.all_input_nodes
        self.graph.erase_node(node)
        for one in read:
            if one.op == "placeholder" and not one.users and one is not given:
                (spec,) = (s for s in self.specs if s.arg.name == one.name)  # type: ignore[union-attr]
                self.specs.remove(spec)
                self.state.pop(spec.target or "")
                self.graph.erase_node(one)

    def _parameter(self, key: str, value: Tensor | None, call: LayerCall) -> Any:
        """A new input for a parameter of a stage, before that of the replaced weight."""
        if value is None:
            return None
        weight = call.tensors["weight"]
        index = next(i for i, spec in enumerate(self.specs) if spec.target == weight)
        before = self.nodes[self.specs[index].arg.name]  # type: ignore[union-attr]
        with self.graph.inserting_before(before):
            node = self.graph.placeholder("p_" + re.sub(r"\W", "_", key))
        assert self.fake is not None
        held = nn.Parameter(value.detach().clone(), value.requires_grad)
        node.meta = {"val": self.fake.from_tensor(held, static_shapes=True)}
        argument = TensorArgument(name=node.name)
        self.specs.insert(index, InputSpec(InputKind.PARAMETER, argument, key))
        self.state[key] = held
        return node

    def _value(self, node: Any) -> Any:
        """What a call gives, without values."""
        assert self.fake is not None
        arguments = [v.meta["val"] if isinstance(v, torch.fx.Node) else v for v in node.args]
        with self.fake, torch.no_grad():
            return node.target(*arguments)

    def _example(self) -> Any:
        """Inputs of the program's sizes and no values, which its own checks of sizes go by."""
        leaves = [
            torch.zeros((), dtype=v.dtype).expand([_hint(size) for size in v.shape])
            if isinstance(v, Tensor)
            else v
            for v in user_inputs(self.old)
        ]
        return tree_unflatten(leaves, self.form.in_spec)


class _ProgramCall(PlainCall):
    """A twin and how its program is called, however its arguments are nested."""

    leaves: list[Any]

    @classmethod
    def of(cls, twin: ProgramTwin, program: ExportedProgram, example: Any) -> _ProgramCall:
        """As the example has it."""
        form = twin.program_form
        if isinstance(example, dict) and example.keys() <= {*form.names}:
            given = example
        else:
            values = example if isinstance(example, tuple) else (example,)
            given = dict(zip((n for n in form.names if n not in form.frozen), values, strict=True))
        leaves, _ = tree_flatten(form.arguments(given))
        tensors = {str(i): v for i, v in enumerate(leaves) if isinstance(v, Tensor)}
        made = cls(twin, tensors, bool(len(form.names) - form.positions))
        object.__setattr__(made, "leaves", leaves)
        return made

    def arguments(self, tensors: Any) -> Any:
        """Tensors in order as the program's arguments, beside those that are none."""
        given = iter(tensors)
        leaves = [next(given) if isinstance(v, Tensor) else v for v in self.leaves]
        return tree_unflatten(leaves, self.model.program_form.in_spec)  # type: ignore[union-attr]

    def __call__(self, tensors: Any) -> Any:
        """Call the twin."""
        positional, named = self.arguments(tensors)
        return self.model(*positional, **named)


def _axes(called: _ProgramCall, program: ExportedProgram) -> FreeAxes:
    """The free axes of the program, with their steps."""
    axes = free_axes(program, called.tensors, called.samples)
    found = replace(axes, axes=tuple(checked_axes(called, program, axes)))
    free, tensors = found.places(), [*called.tensors.values()]
    dims = tuple(  # one that twin and program do not agree on stays as in the example
        tuple(
            dim if (i, axis) in free else tensors[i].shape[axis] for axis, dim in enumerate(shape)
        )
        for i, shape in enumerate(found.dims)
    )
    return replace(found, dims=dims)


def _inputs(called: _ProgramCall, axes: FreeAxes) -> Iterator[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    free = next((axis for axis in axes.axes if axis.name == "batch"), None)
    changes = [{}] if free is None else [{"batch": size} for size in _batches(free)]
    changes += [{**changes[0], **axes.second()}] if axes.second() else []
    for changed in changes:
        yield resized([*called.tensors.values()], axes.sizes(changed), generator)


def _batches(axis: Any) -> list[int]:
    """One and three samples, as far as the program takes them."""
    low = axis.low if axis.low > 2 else 1  # torch writes 2 where it has not tried 1
    return [*dict.fromkeys(min(max(size, low), axis.high) for size in (1, 3))]


def _like(old: Tensor, new: Tensor) -> Tensor:
    value = new.detach().to(old.dtype).clone()
    return nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value


def _hint(size: Any) -> int:
    return size if isinstance(size, int) else int(size.node.hint)
