"""The whole net with some layers replaced, timed on the target before anything is fitted."""

from __future__ import annotations

import copy
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from factorize import export, graph, methods
from factorize.measure import (
    Target,
    in_units,
    onnx_run,
    onnx_speedup,
    splice,
    torch_runs,
    torch_speedup,
)
from factorize.types import Factorization, LayerPlan, Speedup

RUNS = 80  # pairs at most; what is delivered is timed again, for longer


class Assembled:
    """Times nets that are made of the original and chains; their weights do not matter for it.

    Raises
    ------
    ExportError
        The target is ONNX Runtime, and the original cannot be exported.
    """

    def __init__(self, model: nn.Module, example_input: Any, target: Target) -> None:
        self.model = model
        self.example_input = example_input
        self.target = target
        if target.runtime == "onnxruntime":
            self._export()
        self.units, self.unit_ms = self._in_units()

    def _export(self) -> None:
        """The original's graph, its weights in a file that all nets share."""
        import onnx

        folder = Path(tempfile.mkdtemp(prefix="factorize-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._dense, self._spliced = folder / "dense.onnx", folder / "spliced.onnx"
        export.export_onnx(self.model, self.example_input, folder / "original.onnx")
        whole = onnx.load(folder / "original.onnx")
        onnx.save_model(
            whole, self._dense, save_as_external_data=True, location="weights", size_threshold=4096
        )
        (folder / "original.onnx").unlink()
        self._onnx = onnx.load(self._dense, load_external_data=False)
        self._nodes = export.layer_nodes(self._onnx.graph, self.model)

    def _in_units(self) -> tuple[float, float]:
        """The time of the original in units of the latency model, and milliseconds per unit."""
        if self.target.runtime == "onnxruntime":
            return in_units(self.target, onnx_run(self.target, self._dense, self.example_input))
        with torch_runs(self.target, [self.model], self.example_input) as (run,):
            return in_units(self.target, run)

    def speedup(self, layers: Sequence[LayerPlan]) -> Speedup:
        """Time the original beside a net with these layers replaced, alternately."""
        if self.target.runtime == "onnxruntime":
            chains = {layer.spec.name: methods.chain_of(layer) for layer in layers}
            self._spliced.write_bytes(splice(self._onnx, self._nodes, chains))
            return onnx_speedup(
                self._dense, self._spliced, self.example_input, self.target, runs=RUNS
            )
        made = {layer.spec.name: _made_up(layer) for layer in layers}
        replaced = graph.rewrite_(copy.deepcopy(self.model), made)
        return torch_speedup(self.model, replaced, self.example_input, self.target, runs=RUNS)


def _made_up(layer: LayerPlan) -> Factorization:
    """A chain of random weights, small enough that activations stay finite."""
    stages = methods.chain_of(layer)
    generator = torch.Generator().manual_seed(0)
    weights = tuple(
        0.01 * torch.randn(stage.kernel_shape, generator=generator, dtype=torch.float64)
        for stage in stages
    )
    return Factorization(
        layer.spec, layer.method or "", layer.rank, layer.variant, stages, weights, 0.0
    )
