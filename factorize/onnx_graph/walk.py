"""Walks over the nodes and values of an ONNX graph, those of its subgraphs among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def subgraphs(graph: Any) -> Iterator[Any]:
    """The graphs that are attributes of nodes, and those inside of them."""
    for node in graph.node:
        yield from _inside(node)


def _inside(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            yield inner
            yield from subgraphs(inner)


def value_names(graph: Any) -> set[str]:
    """Names of all values that there are."""
    names: set[str] = set()
    for one in (graph, *subgraphs(graph)):
        names |= {v.name for v in (*one.input, *one.initializer)}
        names |= {name for node in one.node for name in node.output}
    return names


def reads(node: Any) -> list[str]:
    """Names of the values that a node reads, its subgraphs among what it is."""
    names = [name for name in node.input if name]
    for graph in _inside(node):
        names += [name for inner in graph.node for name in inner.input if name]
        names += [value.name for value in graph.output]
    return names


def rename_reads(node: Any, names: Mapping[str, str]) -> None:
    """Let a node read values of other names, its subgraphs too, in place."""
    for one in (node, *(inner for graph in _inside(node) for inner in graph.node)):
        for index, name in enumerate(one.input):
            one.input[index] = names.get(name, name)


def inlined(proto: Any) -> Any:
    """A model with its own functions in place of their calls."""
    if not proto.functions:
        return proto
    from onnx import inliner

    return inliner.inline_local_functions(proto)


def read_names(graph: Any, nodes: Any) -> set[str]:
    """Names of the values that nodes or the graph's outputs are made of."""
    return {value.name for value in graph.output}.union(*map(reads, nodes))


def attributes(node: Any) -> dict[str, Any]:
    """The attributes of a node by name; texts as str."""
    from onnx import helper

    found = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    return {
        name: value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        for name, value in found.items()
    }
