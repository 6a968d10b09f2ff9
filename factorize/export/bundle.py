"""All files of one run, the original's beside the compressed model's for comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from factorize import methods
from factorize.errors import ExportError
from factorize.export.program import export_program
from factorize.export.to_onnx import OnnxCheck, export_onnx
from factorize.export.weights import save_weights
from factorize.types import Plan


def export_all(
    folder: Path, original: nn.Module, compressed: nn.Module, plan: Plan, example_input: Any
) -> tuple[OnnxCheck | None, dict[str, dict[str, int]], list[str]]:
    """Write ``model.*`` and, to compare, ``original.*`` into a folder.

    Returns
    -------
    check
        Of ``model.onnx``; None where it could not be exported.
    bytes
        Of the files, by format and ``original`` / ``compressed``.
    failures
        One line for each file of the compressed model that could not be made.
    """
    failures: list[str] = []
    check = None
    chains = {layer.spec.name: len(methods.chain_of(layer)) for layer in plan.factorized}
    save_weights(compressed, folder / "model.safetensors")
    save_weights(original, folder / "original.safetensors")
    try:
        check = export_onnx(compressed, example_input, folder / "model.onnx", chains=chains)
    except ExportError as error:
        failures.append(str(error))
    try:
        export_program(compressed, example_input, folder / "model.pt2")
    except ExportError as error:
        failures.append(str(error))
    if check is not None:
        try:
            export_onnx(original, example_input, folder / "original.onnx")
        except ExportError as error:
            failures.append(f"no time in ONNX Runtime, as the original has no ONNX file: {error}")

    sizes: dict[str, dict[str, int]] = {}
    for kind in ("safetensors", "onnx", "pt2"):
        for role, stem in (("original", "original"), ("compressed", "model")):
            file = folder / f"{stem}.{kind}"
            if file.exists():
                sizes.setdefault(kind, {})[role] = file.stat().st_size
    return check, sizes, failures
