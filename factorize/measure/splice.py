"""A net with some convolutions replaced, for timing, from the ONNX graph of the original.

Exporting a rewritten model takes seconds; its time does not depend on its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from factorize.onnx_graph import (
    OPSET,
    chain_nodes,
    pads_of,
    place_auto_pad,
    place_pads,
    read_names,
)
from factorize.spec import ConvSpec


def splice(
    model: Any, nodes: Mapping[str, Sequence[str]], chains: Mapping[str, Sequence[ConvSpec]]
) -> bytes:
    """The ONNX model with chains of made-up weights in the place of convolutions.

    Parameters
    ----------
    model
        An ``onnx.ModelProto``; stays as it is.
    nodes
        Names of the nodes of each layer: Conv, ConvTranspose, Gemm or MatMul.
    chains
        By layer.
    """
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    chain_of = {node: chains[layer] for layer, names in nodes.items() for node in names
                if layer in chains}  # fmt: skip
    makers = {name: node for node in graph.node for name in node.output}
    spliced, left, newer = [], set(), False  # left: what the replaced nodes read
    for node in graph.node:
        chain = chain_of.get(node.name)
        if chain is None:
            spliced.append(node)
            continue
        bias, source, more = node.input[2] if len(node.input) > 2 else "", node.input[0], None
        if node.op_type == "MatMul":  # its bias is added by a node of its own
            chain = [*chain[:-1], replace(chain[-1], bias=False)]
        elif node.op_type != "Gemm":
            source, chain, more = _padding(node, makers.get(node.input[0]), chain)
        new, weights = chain_nodes(chain, source, node.output[0], f"{node.name}.chain", bias)
        if more is not None:
            place_pads(new, chain, more)
        place_auto_pad(new, node)
        newer = newer or any(one.op_type == "Pad" for one in new)
        spliced += new
        graph.initializer.extend(weights)
        left |= {*node.input}
    unread = left - read_names(graph, spliced)
    pads = [node for node in spliced if node.op_type == "Pad" and node.output[0] in unread]
    spliced = [node for node in spliced if node not in pads]
    unread = left.union(*(pad.input for pad in pads)) - read_names(graph, spliced)
    kept = [weight for weight in graph.initializer if weight.name not in unread]
    inputs = [value for value in graph.input if value.name not in unread]
    del graph.node[:], graph.initializer[:], graph.value_info[:], graph.input[:]
    graph.input.extend(inputs)
    graph.node.extend(spliced)
    graph.initializer.extend(kept)
    for opset in result.opset_import:
        if opset.domain == "" and newer:
            opset.version = max(opset.version, OPSET)
    return result.SerializeToString()


def _padding(
    node: Any, maker: Any, chain: Sequence[ConvSpec]
) -> tuple[str, Sequence[ConvSpec], np.ndarray]:
    """What the chain that replaces a node reads, the chain, and zeros to pad beside its own.

    Exporters write padding as a node of its own where Conv cannot pad so, and merge zeros that a
    model pads before a convolution with the convolution's own.
    """
    theirs = next((a.ints for a in node.attribute if a.name == "pads"), ())
    ours = np.sum([np.concatenate(pads_of(stage)) for stage in chain], axis=0)
    more = np.array(theirs or 0 * ours) - ours
    pad = maker if maker is not None and maker.op_type == "Pad" else None
    if (any(theirs) or not any(ours)) and not (pad and (more < 0).any()):
        return node.input[0], chain, more
    if pad:  # all of the padding, or what is uneven of it
        return pad.input[0], chain, 0 * ours
    none = (0,) * len(chain[0].kernel)
    return node.input[0], [replace(s, padding=none) for s in chain], 0 * ours
