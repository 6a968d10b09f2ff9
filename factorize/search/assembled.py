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
from factorize.measure import Target, in_units, runtimes, speedup, splice
from factorize.onnx_graph import Twin
from factorize.quantize import as_integers
from factorize.types import Factorization, LayerPlan, Speedup

INT8 = "int8"
RUNS = 80  # pairs at most; what is delivered is timed again, for longer


class Assembled:
    """Times nets that are made of the original and chains; their weights do not matter for it.

    Attributes
    ----------
    units, unit_ms
        The time of the original in units of the latency model, and milliseconds per unit. On a
        target that computes in integers: of the original in integers.
    gained
        How many times as fast it is so.

    Raises
    ------
    ExportError
        The target reads ONNX files, and the original cannot be exported.
    """

    gained = 1.0

    def __init__(self, model: nn.Module, example_input: Any, target: Target) -> None:
        self.target = target
        runtime = runtimes.get(target.runtime)
        if isinstance(model, Twin) and runtime.reads == "onnx":
            example_input = model.fed(example_input)
        self.example_input = example_input
        self._nets = _FORMS[runtime.reads](model, example_input)
        as_timed = self._nets.dense
        if target.dtype == INT8:
            as_timed = self._nets.replaced(())
            as_timed.write_bytes(as_integers(as_timed))
            self.gained = self._beside(as_timed).speedup
        with runtime.net_runs(target, [as_timed], example_input) as (run,):
            self.units, self.unit_ms = in_units(target, run)

    def speedup(self, layers: Sequence[LayerPlan]) -> Speedup:
        """Time the original beside a net with these layers replaced, alternately."""
        replaced = self._nets.replaced(layers)
        if self.target.dtype == INT8:
            replaced.write_bytes(as_integers(replaced))
        return self._beside(replaced)

    def _beside(self, net: Any) -> Speedup:
        return speedup(self.target, self._nets.dense, net, self.example_input, runs=RUNS)


class _Modules:
    """The original and what it becomes, as modules."""

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        del example_input
        self.dense = model

    def replaced(self, layers: Sequence[LayerPlan]) -> nn.Module:
        """A copy with chains of made-up weights in the place of layers."""
        made = {layer.spec.name: _made_up(layer) for layer in layers}
        return graph.rewrite_(copy.deepcopy(self.dense), made)


def as_onnx(model: nn.Module, example_input: Any, folder: Path) -> tuple[Any, dict[str, list[str]]]:
    """A net as ``onnx.ModelProto``, and the names of each layer's nodes.

    Parameters
    ----------
    folder
        For a file in between.
    """
    import onnx

    if isinstance(model, Twin):
        return model.named_nodes()
    path = folder / "original.onnx"
    export.export_onnx(model, example_input, path)
    whole = onnx.load(path)
    path.unlink()
    return whole, export.layer_nodes(whole.graph, model)


class _OnnxFiles:
    """The original's graph, its weights in a file that all nets share."""

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        import onnx

        folder = Path(tempfile.mkdtemp(prefix="factorize-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.dense, self._spliced = folder / "dense.onnx", folder / "spliced.onnx"
        whole, self._nodes = as_onnx(model, example_input, folder)
        onnx.save_model(
            whole, self.dense, save_as_external_data=True, location="weights", size_threshold=4096
        )
        self._onnx = onnx.load(self.dense, load_external_data=False)

    def replaced(self, layers: Sequence[LayerPlan]) -> Path:
        """The file of the net with chains spliced in; the next one takes its place."""
        chains = {layer.spec.name: methods.chain_of(layer) for layer in layers}
        self._spliced.write_bytes(splice(self._onnx, self._nodes, chains))
        return self._spliced


_FORMS = {"module": _Modules, "onnx": _OnnxFiles}


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
