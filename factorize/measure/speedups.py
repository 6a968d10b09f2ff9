"""Original against compressed on the target, or in every runtime at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from factorize.measure.latency import onnx_speedup, torch_speedup
from factorize.measure.target import Target
from factorize.types import Speedup


def speedups(
    folder: Path,
    original: nn.Module,
    compressed: nn.Module,
    example_input: Any,
    targets: Sequence[Target],
) -> list[Speedup]:
    """Time both models on each target.

    Parameters
    ----------
    folder
        With ``original.onnx`` and ``model.onnx``; without both, ONNX Runtime is left out.
    """
    files = folder / "original.onnx", folder / "model.onnx"
    found = []
    for target in targets:
        if target.runtime != "onnxruntime":
            found.append(torch_speedup(original, compressed, example_input, target))
        elif all(file.exists() for file in files):
            found.append(onnx_speedup(*files, example_input, target))
    return found
