"""ONNX graphs: the file that a net came in, its twin in torch, and chains put into a graph."""

from factorize.onnx_graph.chain_nodes import OPSET, chain_nodes, pads_of, place_auto_pad, place_pads
from factorize.onnx_graph.check_twin import check_batch, check_twin
from factorize.onnx_graph.integers import in_integers_
from factorize.onnx_graph.make_twin import make_twin
from factorize.onnx_graph.onnx_file import OnnxFile, read_onnx
from factorize.onnx_graph.parts import Part, spans_of
from factorize.onnx_graph.twin import Twin
from factorize.onnx_graph.walk import inlined, read_names, rename_reads, subgraphs, value_names

__all__ = [
    "OPSET",
    "OnnxFile",
    "Part",
    "Twin",
    "chain_nodes",
    "check_batch",
    "check_twin",
    "in_integers_",
    "inlined",
    "make_twin",
    "pads_of",
    "place_auto_pad",
    "place_pads",
    "read_names",
    "read_onnx",
    "rename_reads",
    "spans_of",
    "subgraphs",
    "value_names",
]
