"""Original against compressed in every runtime at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from factorize.measure.latency import onnx_speedup, torch_speedup
from factorize.types import Speedup


def speedups(
    folder: Path,
    original: nn.Module,
    compressed: nn.Module,
    example_input: Any,
    *,
    device: str,
    threads: int | None,
) -> list[Speedup]:
    """Time both models in ONNX Runtime and torch on the CPU, and in torch on CUDA if asked for.

    Parameters
    ----------
    folder
        With ``original.onnx`` and ``model.onnx``; without both, ONNX Runtime is left out.
    """
    files = folder / "original.onnx", folder / "model.onnx"
    found = []
    if all(file.exists() for file in files):
        found.append(onnx_speedup(*files, example_input, threads=threads))
    return found + [
        torch_speedup(original, compressed, example_input, device=where, threads=threads)
        for where in dict.fromkeys(("cpu", device))
    ]
