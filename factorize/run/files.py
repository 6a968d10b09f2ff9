"""The files of a run."""

from __future__ import annotations

from torch import nn

from factorize import export
from factorize.onnx_graph import Twin
from factorize.run.in_integers import SCALES

RUN_FILE = "run.toml"
OUTPUTS = (
    "model.safetensors", "plan.json", "model.onnx", "model.pt2", "report.json", "report.html",
    SCALES, RUN_FILE, *export.OPENVINO_FILES,
)  # fmt: skip


def outputs_of(model: nn.Module) -> tuple[str, ...]:
    """Names of the files of a run; those with an ONNX file's data are called as they were."""
    external = model.onnx_file.external if isinstance(model, Twin) else ()
    return (*OUTPUTS, *export.hub_files.names_of(model), *external)
