"""What replaced layers have become in an ONNX graph."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from factorize.errors import ExportError

# The operators of each kind of stage; the first one that is there counts it.
_NODES: dict[type[nn.Module], tuple[str, ...]] = {
    _ConvTransposeNd: ("ConvTranspose",),
    _ConvNd: ("Conv",),
    nn.Linear: ("Gemm", "MatMul", "Add", "Reshape"),
    nn.ChannelShuffle: ("Transpose", "Reshape"),
}

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_SCOPES = "pkg.torch.onnx.name_scopes"


def layer_nodes(graph: Any, model: nn.Module) -> dict[str, list[str]]:
    """Names of the nodes of an exported graph that are layers, by each name of the layer.

    The node of a linear layer is a ``Gemm``, or a ``MatMul`` without the ``Add`` of its bias.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    nodes: dict[str, list[str]] = {}
    for node in graph.node:
        if node.op_type in _LAYERS and (owner := _owner(node, modules)) is not None:
            for name, module in modules.items():
                if module is owner:
                    nodes.setdefault(name, []).append(node.name)
    return nodes


def name_layers(graph: Any, model: nn.Module) -> None:
    """Name the nodes that are layers after these: ``layer1.0.conv1/Conv``.

    So they can be told, in a viewer and by `layer_nodes`, when all else that is noted is gone.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    used = {node.name for node in graph.node}
    for node in graph.node:
        layer = _owner_name(node, modules) if node.op_type in _LAYERS else None
        if layer is not None:
            name = f"{layer}/{node.op_type}"
            more = (f"{name}_{i}" for i in range(1, len(graph.node) + 1))
            node.name = next(one for one in (name, *more) if one not in used)
            used.add(node.name)


def check_chain(graph: Any, model: nn.Module, layer: str, stages: int, program: Any) -> None:
    """Check that a replaced layer is the nodes of its stages, in a row, wherever it is called.

    One that is called with constants alone, a table of positions, may have become one itself.

    Parameters
    ----------
    program
        The ``torch.export.ExportedProgram`` that the graph was made of.

    Raises
    ------
    ExportError
        Something else is among them, or they are not there.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    chain = modules[layer]
    parts = list(chain.children())
    main = [_operators(part)[:1] for part in parts]
    what = "Conv" if set(main) <= {("Conv",)} else "layer"
    where = (
        f"{layer or '(the model itself)'}: must be {stages} {what} nodes in a row in the ONNX graph"
    )
    fix = "Replace it by nn.Sequential of plain layers. Not written."
    if len(parts) != stages:
        raise ExportError(f"{where}, got {len(parts)} modules. {fix}")

    consumers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    met: list[str] = []  # operators that come from the chain, its stages or not
    called: set[int] = set()
    made: set[str] = set()  # what the chain's nodes put out
    for node in graph.node:
        owner = _owner(node, modules)
        stage = next((i for i, module in enumerate(parts) if module is owner), None)
        inside = any(modules.get(scope) is chain for scope in _scopes(node))
        met += [node.op_type] if inside or stage is not None else []
        if stage is not None and node.op_type in _operators(owner):
            called.add(stage)
            made.update(node.output)
            after = _after(node, consumers, modules)
            # A stage of several nodes hands on to itself.
            allowed = [owner, *parts[stage + 1 : stage + 2]]
            if stage < stages - 1 and (
                node.output[0] in outputs
                or not after
                or any(all(_owner(n, modules) is not one for one in allowed) for n in after)
            ):
                got = ", ".join(next_.op_type for next_ in after) or "the model's output"
                raise ExportError(f"{where}, got {got} after its {node.op_type} {stage}. {fix}")
        elif inside and not _pads(node, owner) and not made.isdisjoint(node.input):
            # What only leads to the chain, a slice of its input or a constant, is not in it.
            raise ExportError(f"{where}, got {node.op_type} among them. {fix}")
    if met and not called:
        raise ExportError(f"{where}, got {', '.join(met)}. {fix}")
    if not met and not any(modules.get(name) is chain for name in _traced(program)):
        raise ExportError(f"{where}, got none: the model never calls it. Leave it out of `chains`.")


def _traced(program: Any) -> set[str]:
    """Names of the modules that a traced program calls."""
    stacks = [node.meta.get("nn_module_stack") or {} for node in program.graph.nodes]
    return {name for stack in stacks for name, _ in stack.values()}


def _operators(module: Any) -> tuple[str, ...]:
    return next((ops for kind, ops in _NODES.items() if isinstance(module, kind)), ())


def _owner(node: Any, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """Return the layer a node comes from."""
    name = _owner_name(node, modules)
    return None if name is None else modules[name]


def _owner_name(node: Any, modules: Mapping[str, nn.Module]) -> str | None:
    """Name the layer a node comes from: by its scope, or by the name of its weight.

    The latter is for a convolution that a batch norm was folded into: its scope is that of the
    batch norm. The exporter folds into no weight that several modules share.
    """
    names = _scopes(node)
    if node.op_type in ("Conv", "ConvTranspose"):
        names.insert(0, node.input[1].removesuffix(".weight"))
    layers = (name for name in reversed(names) if isinstance(modules.get(name), tuple(_NODES)))
    return next(layers, None)


def _scopes(node: Any) -> list[str]:
    """Return the names of the modules a node was called in, outermost first.

    Of a finished file, whose nodes have no such note, the layer that the node's name begins with.
    """
    properties = {entry.key: entry.value for entry in node.metadata_props}
    if _SCOPES in properties:
        return ast.literal_eval(properties[_SCOPES])
    layer, slash, _ = node.name.rpartition("/")
    return [layer] if slash else []


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
        and hasattr(owner, "padding")
        and (owner.padding_mode != "zeros" or owner.padding == "same")
    )
