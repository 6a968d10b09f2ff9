"""A net with some convolutions replaced, for timing, from the ONNX graph of the original.

Exporting a rewritten model takes seconds; its time does not depend on its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from factorize.measure.onnx_chain import OPSET, chain_nodes
from factorize.types import ConvSpec


def splice(
    model: Any, nodes: Mapping[str, Sequence[str]], chains: Mapping[str, Sequence[ConvSpec]]
) -> bytes:
    """The ONNX model with chains of made-up weights in the place of convolutions.

    Parameters
    ----------
    model
        An ``onnx.ModelProto``; stays as it is.
    nodes
        Names of the Conv nodes of each layer.
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
    spliced, dropped = [], set()
    for node in graph.node:
        chain = chain_of.get(node.name)
        if chain is None:
            spliced.append(node)
            continue
        source, padding = node.input[0], makers.get(node.input[0])
        pads_itself = chain[0].padding == "same" or chain[0].padding_mode != "zeros"
        if pads_itself and padding is not None and padding.op_type == "Pad":
            source = padding.input[0]  # the chain has a Pad of its own
            dropped.add(padding.name)
        bias = node.input[2] if len(node.input) > 2 else ""
        new, weights = chain_nodes(chain, source, node.output[0], f"{node.name}.chain", bias)
        spliced += new
        graph.initializer.extend(weights)
    del graph.node[:]
    graph.node.extend(node for node in spliced if node.name not in dropped)
    del graph.value_info[:]
    for opset in result.opset_import:
        if opset.domain == "" and dropped:
            opset.version = max(opset.version, OPSET)
    read = {name for node in graph.node for name in node.input}
    kept = [weight for weight in graph.initializer if weight.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return result.SerializeToString()
