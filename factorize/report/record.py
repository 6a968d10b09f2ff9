"""The report as data: numbers, never strings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from factorize.types import Factorization, Plan, Rank, Size, Speedup

FORMAT = "factorize-report"
VERSION = 1


@dataclass(frozen=True)
class LayerReport:
    """One convolution before and after.

    Attributes
    ----------
    error
        As in `Factorization`, of the layer's output or, fitted without images, of its kernel;
        None for a layer that stayed dense.
    held_out_error
        Of the output on calibration images that were not fitted to.
    """

    name: str
    kind: str
    weight_shape: Size
    method: str | None
    rank: Rank
    variant: str
    macs_original: int
    macs: int
    params_original: int
    params: int
    error: float | None
    held_out_error: float | None
    skip_reason: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """All that was measured.

    Attributes
    ----------
    model
        Where it came from: an architecture, a file, a class.
    params, macs, bytes
        Of the whole model, under ``original`` and ``compressed``; bytes by file format.
    quality
        Values by stage: ``original``, ``rewritten``, ``recalibrated``, ``finetuned``.
    quality_of
        What these values were measured on.
    seconds
        Wall time by stage.
    failures
        What was asked for and could not be delivered, one line each.
    """

    model: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    layers: tuple[LayerReport, ...]
    params: dict[str, int]
    macs: dict[str, int]
    bytes: dict[str, dict[str, int]]
    quality: dict[str, dict[str, float]]
    quality_of: str
    speed: tuple[Speedup, ...]
    recalibration: dict[str, Any] | None
    finetuning: dict[str, Any] | None
    onnx: dict[str, Any] | None
    seconds: dict[str, float]
    failures: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; what is not finite becomes null."""
        return {"format": FORMAT, "version": VERSION, **_finite(asdict(self))}

    def save(self, path: str | Path) -> None:
        """Write the report as JSON."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False, default=str)
        Path(path).write_text(text + "\n", encoding="utf-8")


def layer_reports(plan: Plan, fitted: Mapping[str, Factorization]) -> tuple[LayerReport, ...]:
    """One entry per convolution of the plan, with the errors of the fit."""
    return tuple(
        LayerReport(
            name=layer.spec.name,
            kind=layer.spec.kind,
            weight_shape=layer.spec.weight_shape,
            method=layer.method,
            rank=layer.rank,
            variant=layer.variant,
            macs_original=layer.spec.macs,
            macs=layer.macs,
            params_original=layer.spec.params,
            params=layer.params,
            error=fitted[layer.spec.name].error if layer.method else None,
            held_out_error=fitted[layer.spec.name].held_out_error if layer.method else None,
            skip_reason=layer.skip_reason,
            notes=layer.notes,
        )
        for layer in plan.layers
    )


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
