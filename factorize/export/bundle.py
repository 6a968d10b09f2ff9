"""All files of one run, the original's beside the compressed model's for comparison."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from factorize import methods
from factorize.errors import ExportError
from factorize.export.alone import expect
from factorize.export.onnx_back import export_back
from factorize.export.program import export_program
from factorize.export.program_back import export_program_back
from factorize.export.to_onnx import OnnxCheck, OnnxConfig, export_onnx
from factorize.export.traces import Traces
from factorize.export.weights import save_weights
from factorize.onnx_graph import OnnxFile, Twin
from factorize.program import ProgramTwin
from factorize.types import Plan


@dataclass
class Exports:
    """The files of one run, as far as they are made.

    Attributes
    ----------
    check
        Of ``model.onnx``; None where it could not be exported.
    failures
        One line for each file of the compressed model that could not be made.
    source
        The ONNX file that the original came in, where it did.
    """

    folder: Path
    check: OnnxCheck | None = None
    failures: list[str] = field(default_factory=list)
    source: OnnxFile | None = None

    @property
    def onnx_files(self) -> tuple[Path, Path]:
        """The original and the compressed net's."""
        original = self.source.path if self.source else self.folder / "original.onnx"
        return original, self.folder / "model.onnx"

    @property
    def sizes(self) -> dict[str, dict[str, int]]:
        """Bytes of the files, by format and ``original`` / ``compressed``."""
        sizes: dict[str, dict[str, int]] = {}
        for kind in ("safetensors", "onnx", "pt2"):
            for role, stem in (("original", "original"), ("compressed", "model")):
                file = self.folder / f"{stem}.{kind}"
                if file.exists():
                    sizes.setdefault(kind, {})[role] = file.stat().st_size
        if self.source and self.check:
            sizes["onnx"] = {"original": self.source.bytes, "compressed": self.check.bytes}
        return sizes


def export_all(
    made: Exports,
    original: nn.Module,
    compressed: nn.Module,
    plan: Plan,
    example_input: Any,
    config: OnnxConfig = OnnxConfig(),  # noqa: B008 (frozen)
) -> None:
    """Write ``model.*`` and, to compare, ``original.*`` into a folder.

    Parameters
    ----------
    made
        Has the folder, and is told what is made.
    config
        Of both ONNX files.
    """
    folder, failures = made.folder, made.failures
    if isinstance(original, Twin):
        _export_twin(made, original, compressed, plan, example_input)
        return
    expect("onnxruntime", "torch")
    traces = Traces(compressed, example_input)
    chains = {layer.spec.name: len(methods.chain_of(layer)) for layer in plan.factorized}
    with _noting(failures, "model.safetensors", folder):
        save_weights(compressed, folder / "model.safetensors")
        save_weights(original, folder / "original.safetensors")
    with _noting(failures, "model.onnx", folder):
        made.check = export_onnx(
            compressed, example_input, folder / "model.onnx",
            chains=chains, config=config, traces=traces,
        )  # fmt: skip
    with _noting(failures, "model.pt2", folder):
        if isinstance(compressed, ProgramTwin):
            export_program_back(compressed, plan, example_input, folder / "model.pt2")
        else:
            export_program(compressed, example_input, folder / "model.pt2", traces=traces)
    if made.check is not None:
        with _noting(failures, "original.onnx, to compare the time in ONNX Runtime", folder):
            export_onnx(original, example_input, folder / "original.onnx", config=config)


def _export_twin(
    made: Exports, original: Twin, compressed: nn.Module, plan: Plan, example_input: Any
) -> None:
    """Write ``model.onnx`` from the file that the original is the twin of."""
    folder, made.source = made.folder, original.onnx_file
    assert isinstance(compressed, Twin)
    with _noting(made.failures, "model.safetensors", folder):
        save_weights(compressed, folder / "model.safetensors")
        save_weights(original, folder / "original.safetensors")
    with _noting(made.failures, "model.onnx", folder):
        made.check = export_back(original, compressed, plan, example_input, folder / "model.onnx")


@contextmanager
def _noting(failures: list[str], what: str, folder: Path) -> Iterator[None]:
    """Go on after a failed export, but say which file is missing and why."""
    try:
        yield
    except ExportError as error:
        failures.append(f"{what}: {str(error).replace(f'{folder}{os.sep}', '')}")
