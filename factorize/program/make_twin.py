"""From an exported program to its twin: calls whose weights are parameters become modules."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind

from factorize.errors import ModelLoadError
from factorize.program.archive import load_program
from factorize.program.layers import LAYERS, NORMS, arguments, layer_of, norm_of
from factorize.program.twin import LayerCall, ProgramForm, ProgramTwin, children
from factorize.system.imports import brief
from factorize.system.quiet import quiet
from factorize.tensor.twins import LEFT_ALONE, told_by_reason

_NORM = ("weight", "bias", "running_mean", "running_var")


def make_twin(archive: bytes, path: Path) -> tuple[ProgramTwin, tuple[str, ...]]:
    """The twin of an archive that is safe to load, and what to tell of it.

    Raises
    ------
    ModelLoadError
        The program was exported in train mode, is not in float32 or float64, or cannot be run.
    """
    program = load_program(archive, path)
    check_floats(program, path)
    try:
        with quiet():
            module = program.module()
    except Exception as failure:  # torch has no error of its own for it
        raise ModelLoadError(
            f"{path}: torch cannot make a module of the program ({brief(failure)}). Export the "
            "model again."
        ) from failure
    for node in [*module.graph.nodes]:
        if node.op == "call_module" and node.target == "_guards_fn":  # sizes of the example
            module.graph.erase_node(node)
    check_eval(module, path)
    making = _Making(program, module)
    for key, nodes in making.calls().items():
        making.place(key, nodes)
    for one in module.graph.nodes:
        one.meta = {}
    return making.twin(archive, path), tuple(told_by_reason(making.alone))


def check_floats(program: ExportedProgram, path: Path) -> None:
    """Refuse a program in half precision: its operators say so by themselves.

    Raises
    ------
    ModelLoadError
        It is.
    """
    for name, tensor in program.state_dict.items():
        if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
            raise ModelLoadError(
                f"{path}: must be in float32 or float64, got {tensor.dtype} in {name}. Export the "
                "model after .float()."
            )


def check_eval(module: fx.GraphModule, path: Path) -> None:
    """Refuse a program that was exported in train mode.

    Raises
    ------
    ModelLoadError
        It was: a batch norm or dropout says so.
    """
    for node in module.graph.nodes:
        target = node.target
        if node.op != "call_function" or type(target).__name__ != "OpOverload":
            continue
        name, given = target._schema.name.removeprefix("aten::"), arguments(node)
        training = given.get("training", given.get("train", False))
        if "dropout" in name and training:
            pass
        elif not ("batch_norm" in name and training and given.get("running_mean") is not None):
            continue
        raise ModelLoadError(
            f"{path}: was exported in train mode ({node.name}: {name}). Export it after "
            "model.eval()."
        )


class _Making:
    """What is known on the way."""

    def __init__(self, program: ExportedProgram, module: fx.GraphModule) -> None:
        self.program, self.module = program, module
        self.graph = module.graph
        self.layers: dict[str, LayerCall] = {}
        self.alone: list[tuple[str, str]] = []
        self.readers: dict[str, set[str]] = defaultdict(set)  # calls by what they read
        for node in self.graph.nodes:
            if node.op == "get_attr":
                self.readers[str(node.target)] |= {user.name for user in node.users}

    def calls(self) -> dict[tuple[Any, ...], list[fx.Node]]:
        """The calls of layers and batch norms, those that are one module together."""
        found: dict[tuple[Any, ...], list[fx.Node]] = defaultdict(list)
        for node in self.graph.nodes:
            if node.op != "call_function" or node.target not in LAYERS | NORMS:
                continue
            given = arguments(node)
            tensors = {n: str(v.target) for n, v in given.items() if _is_held(v)}
            if node.target in LAYERS and "weight" not in tensors:
                self.alone.append((node.name, "its weight is computed"))
                continue
            if any(isinstance(v, fx.Node) and n != "input" and n not in tensors
                   for n, v in given.items()):  # fmt: skip
                if node.target in LAYERS:
                    self.alone.append((node.name, "its bias is computed"))
                continue
            own = {k: v for k, v in given.items() if not isinstance(v, fx.Node)}
            found[node.target, tuple(tensors.items()), repr(own)].append(node)
        return found

    def place(self, key: tuple[Any, ...], nodes: list[fx.Node]) -> None:
        """Put a module in the place of calls that are alike."""
        norm, given = key[0] in NORMS, arguments(nodes[0])
        tensors = {n: str(v.target) for n, v in given.items() if _is_held(v) and n != "input"}
        values = {n: _value(self.module, target) for n, target in tensors.items()}
        names = {node.name for node in nodes}
        reason = None
        first = tensors.get("weight", tensors.get("running_mean", ""))
        elsewhere = {r for target in tensors.values() for r in self.readers[target]} - names
        if elsewhere:
            reason = f"its weights are read by {sorted(elsewhere)[0]} too"
        elif not norm and len(nodes) > 1:
            reason = f"its weight is used {len(nodes)} times in the program"
        elif not set(tensors.values()) <= self.program.state_dict.keys():
            reason = "its weight is a constant of the program"
        made = None
        if norm:
            if elsewhere or "running_mean" not in tensors or not self._norm_fits(nodes, tensors):
                return
            made = norm_of(given, len(values["running_mean"]))
        elif not elsewhere:
            made = layer_of(given, values["weight"].shape, "bias" in tensors)
            reason = reason if made else "no module of torch computes all of it"
        if made is None:
            if not norm:
                self.alone += [(node.name, reason or "") for node in nodes]
            return
        name = self._name(first, tensors)
        for one, value in values.items():
            setattr(made, one, nn.Parameter(value.detach(), value.requires_grad)
                    if one in ("weight", "bias") else value)  # fmt: skip
        made.eval()
        if reason:
            setattr(made, LEFT_ALONE, reason)
        self._put(name, made, tensors)
        self.layers[name] = LayerCall(tuple(node.name for node in nodes), tensors)
        for node in nodes:
            self._call(node, name)

    def _norm_fits(self, nodes: list[fx.Node], tensors: dict[str, str]) -> bool:
        """Whether torch's module computes the calls: all of the outputs that are read."""
        if tensors.keys() & {"weight", "bias"} not in (set(), {"weight", "bias"}):
            return False
        if nodes[0].target not in NORMS or "no_training" not in str(nodes[0].target):
            return True
        return all(user.args[1:] == (0,) for node in nodes for user in node.users)

    def _name(self, target: str, tensors: dict[str, str]) -> str:
        """Of the module: that of the one which held the weight, where it held nothing else."""
        owner, _, last = target.rpartition(".")
        if owner and last in _NORM:
            holder = self.module.get_submodule(owner)
            held = {f"{owner}.{n}" for n in (*holder._parameters, *holder._buffers)}
            rest = held - set(tensors.values()) - {f"{owner}.num_batches_tracked"}
            fits = all(value == f"{owner}.{n}" for n, value in tensors.items())
            if fits and not rest and not holder._modules:
                return owner
        return target if owner else f"{target}_layer"

    def _put(self, name: str, made: Any, tensors: dict[str, str]) -> None:
        owner, _, last = name.rpartition(".")
        parent = self.module.get_submodule(owner)
        holder = parent._modules.get(last)
        counted = holder._buffers.get("num_batches_tracked") if holder is not None else None
        if "running_mean" in tensors:
            made.num_batches_tracked = counted
        for target in tensors.values():
            place, _, key = target.rpartition(".")
            old = self.module.get_submodule(place)
            old._parameters.pop(key, None)
            old._buffers.pop(key, None)
        parent._modules[last] = made

    def _call(self, node: fx.Node, name: str) -> None:
        """Call the module in the place of a node."""
        with self.graph.inserting_before(node):
            call = self.graph.call_module(name, (arguments(node)["input"],))
        if "no_training" in str(node.target):
            for user in [*node.users]:
                user.replace_all_uses_with(call)
                self.graph.erase_node(user)
        else:
            node.replace_all_uses_with(call)
        read = [one for one in node.all_input_nodes if one.op == "get_attr"]
        self.graph.erase_node(node)
        for one in read:
            if not one.users:
                self.graph.erase_node(one)

    def twin(self, archive: bytes, path: Path) -> ProgramTwin:
        """The twin with all that the module holds."""
        call = self.program.module_call_graph[0].signature
        assert call is not None
        assert call.in_spec is not None
        in_spec, out_spec = call.in_spec, call.out_spec
        keywords = children(in_spec)[1].context
        count = len(children(children(in_spec)[0]))
        given = [*(call.forward_arg_names or ())][:count]
        given += [f"input_{i}" for i in range(len(given), count)]
        names = (*given, *keywords)
        specs = [
            one.arg for one in self.program.graph_signature.input_specs
            if one.kind is InputKind.USER_INPUT
        ]  # fmt: skip
        # Where arguments are nested there are more of them than names, and none is frozen.
        frozen = {
            name: one.value
            for name, one in zip(names, specs if len(specs) == len(names) else (), strict=False)
            if isinstance(one, ConstantArgument)
        }
        form = ProgramForm(path, archive, self.graph, names, frozen, in_spec, out_spec, self.layers)
        twin = ProgramTwin(form)
        for node in self.graph.nodes:  # constants are bare attributes, which no device reaches
            if node.op == "get_attr" and isinstance(
                held := vars(self.module).get(node.target), Tensor
            ):
                twin.register_buffer(node.target, held, persistent=False)
        for held in ("_parameters", "_buffers", "_modules"):
            getattr(twin, held).update(getattr(self.module, held))
        twin._modules.pop("_guards_fn", None)
        twin._non_persistent_buffers_set |= self.module._non_persistent_buffers_set
        return twin


def _is_held(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _value(module: nn.Module, target: str) -> Any:
    for part in target.split("."):
        module = getattr(module, part)
    return module
