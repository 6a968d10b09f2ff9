"""Files of a model: ONNX, exported program (.pt2) and weights, each checked before it appears."""

from factorize.export import hub_files
from factorize.export.bundle import Exports, export_all
from factorize.export.onnx_nodes import layer_nodes
from factorize.export.openvino_files import OPENVINO_FILES, check_openvino, write_openvino
from factorize.export.output_folder import output_folder
from factorize.export.program import export_program
from factorize.export.to_onnx import OnnxCheck, OnnxConfig, export_onnx
from factorize.export.weights import save_weights

__all__ = [
    "OPENVINO_FILES",
    "Exports",
    "OnnxCheck",
    "OnnxConfig",
    "check_openvino",
    "export_all",
    "export_onnx",
    "export_program",
    "hub_files",
    "layer_nodes",
    "output_folder",
    "save_weights",
    "write_openvino",
]
