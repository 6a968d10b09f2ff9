"""The twin of an exported program: a torch module that computes the same, its layers modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from factorize.program.archive import load_program
from factorize.tensor.twins import joined


@dataclass(frozen=True)
class LayerCall:
    """Where a module stands in the program.

    Attributes
    ----------
    nodes
        Names of the program's calls that it stands for.
    tensors
        What its parameters are called in the program, by their names in the module.
    """

    nodes: tuple[str, ...]
    tensors: dict[str, str]


@dataclass(frozen=True)
class ProgramForm:
    """What the copies of a twin share.

    Attributes
    ----------
    path, archive
        The file that the program came in, and one that is safe to load.
    graph
        Without the shapes of the values in it; calls of layers are calls of modules.
    names
        Of the arguments, those by position first.
    frozen
        Arguments that are no tensors: the program knows them.
    in_spec, out_spec
        How arguments and outputs are nested.
    layers
        By name of the module.
    one_by_one
        Whether a batch goes through sample by sample.
    """

    path: Path
    archive: bytes
    graph: fx.Graph
    names: tuple[str, ...]
    frozen: Mapping[str, Any]
    in_spec: TreeSpec
    out_spec: TreeSpec
    layers: dict[str, LayerCall] = field(default_factory=dict)
    one_by_one: bool = False

    def __deepcopy__(self, _: Any) -> ProgramForm:
        return self

    @property
    def positions(self) -> int:
        """How many arguments go by position."""
        return len(children(children(self.in_spec)[0]))

    def program(self) -> ExportedProgram:
        """A fresh one."""
        return load_program(self.archive, self.path)

    def arguments(self, given: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments by name as the program takes them, by position and by keyword."""
        given = {**self.frozen, **given}
        at, by_name = self.names[: self.positions], self.names[self.positions :]
        if given.keys() != set(self.names):
            raise TypeError(f"takes {', '.join(self.names)}, got {', '.join(given)}")
        return tuple(given[name] for name in at), {name: given[name] for name in by_name}


def children(spec: TreeSpec) -> list[TreeSpec]:
    """What a container has in it."""
    return spec.children() if hasattr(spec, "children") else spec.children_specs  # before 2.10


class ProgramTwin(nn.Module):
    """Takes the program's inputs, in order or by name, and gives its outputs.

    Attributes
    ----------
    program_form
        What it is the twin of. Copies share it.
    """

    def __init__(self, form: ProgramForm) -> None:
        super().__init__()
        self.program_form = form

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run the program."""
        form = self.program_form
        wanted = [name for name in form.names if name not in form.frozen]
        if len(inputs) == len(form.names):
            wanted = list(form.names)
        given = dict(zip(wanted, inputs, strict=False)) | named
        leaves, spec = tree_flatten(form.arguments(given))
        if spec != form.in_spec:
            raise TypeError(f"takes arguments nested as {form.in_spec}, got {spec}")
        batch = next((v.shape[0] for v in leaves if isinstance(v, Tensor) and v.ndim), 1)
        if not form.one_by_one or batch == 1:
            return self._run(leaves)
        runs = [self._run(_sample(leaves, i)) for i in range(batch)]
        return tree_map(lambda *values: joined(values), *runs)

    def _run(self, leaves: list[Any]) -> Any:
        values = _Interpreter(self, graph=self.program_form.graph).run(
            *leaves, enable_io_processing=False
        )
        return tree_unflatten(values, self.program_form.out_spec)

    def extra_repr(self) -> str:
        """The file."""
        return str(self.program_form.path)


class _Interpreter(fx.Interpreter):
    """Makes new tensors where the twin is, wherever the program was exported."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if kwargs.get("device") is not None:
            home = next((t.device for t in self.module.parameters()), torch.device("cpu"))
            kwargs = {**kwargs, "device": home}
        return super().call_function(target, args, kwargs)


def _sample(leaves: list[Any], index: int) -> list[Any]:
    return [v[index : index + 1] if isinstance(v, Tensor) and v.ndim else v for v in leaves]
