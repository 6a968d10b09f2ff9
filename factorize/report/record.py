"""The report as data: numbers, never strings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factorize.report.curve import ALONE, Curve, CurvePoint
from factorize.spec import Rank, Size
from factorize.system.whole_file import write_whole
from factorize.types import Factorization, Plan, Speedup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "factorize-report"
VERSION = 1
CONTROL = "control"  # the step of the original, tuned as the compressed model was
CUT_SHORT = "interrupted before all files were exported and timed"  # a note


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
    ms_original, ms
        Time of the convolution and of its chain, each by itself on the target, summed over its
        calls; None where not measured. Of a layer that stayed dense, `ms` is that of the fastest
        chain that was offered for it.
    speedup_low, speedup_high
        Bounds, with 95 % confidence, of the median ratio of the two.
    elsewhere
        These four on each of the other targets, by what it is called.
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
    ms_original: float | None = None
    ms: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    elsewhere: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name as shown to people."""
        return self.name or "(the model itself)"

    @property
    def ms_now(self) -> float | None:
        """Time of what is there in the result: the chain, or the convolution that stayed."""
        return self.ms if self.method else self.ms_original


@dataclass(frozen=True)
class SearchReport:
    """How the plan was searched, and how far the search's predictions held.

    Attributes
    ----------
    budget, target
        What was asked for (``speedup``, ``macs``, ``params``, ``max_drop``), and on what:
        ``runtime``, ``threads``, ``batch``, ``dtype``, ``compiled``, ``device``.
    predicted_ms
        Of the whole net: ``original``, ``compressed``.
    measured
        The whole net on the target; None where no time was asked for.
    chains_timed, chains_cached, errors_made, errors_cached
        Measured or computed in this run, and known from earlier ones: times of chains, and errors.
    trials
        What each one tried, its predicted and its measured loss and time.
    reached
        Whether the budget was kept, and the net is not slower on another target.
    likes
        What each target was found to like, see `search.likes`.
    """

    budget: dict[str, float]
    target: dict[str, Any]
    predicted_ms: dict[str, float]
    measured: Speedup | None
    layers_considered: int
    chains_timed: int
    chains_cached: int
    trials: tuple[dict[str, Any], ...]
    reached: bool
    errors_made: int = 0
    errors_cached: int = 0
    likes: tuple[dict[str, Any], ...] = ()


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
        Values by step: ``original``, ``rewritten``, ``recalibrated``, ``finetuned``, and
        ``control``: the original tuned alike. `finetuning`, `control`: how these tunings went.
    quality_of
        What these values were measured on.
    seconds
        Wall time by step.
    failures
        What was asked for and could not be delivered, one line each.
    search
        None where method and rank were given.
    curve
        Models at other budgets, with the dense one and uniform ranks.
    int8
        How the layers of ``model.onnx`` and, ``alone``, of the original became integers.
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
    search: SearchReport | None = None
    curve: tuple[CurvePoint, ...] = Curve()
    control: dict[str, Any] | None = None
    int8: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "curve", Curve(self.curve))

    @property
    def measured(self) -> Speedup | None:
        """Time of the whole net on the target; without a search, in the first runtime."""
        if self.search and self.search.measured:
            return self.search.measured
        return self.speed[0] if self.speed else None

    @property
    def quality_now(self) -> dict[str, float]:
        """Of the compressed model as it is delivered."""
        others = CONTROL, ALONE
        steps = [values for step, values in self.quality.items() if step not in others]
        return steps[-1] if steps else {}

    def derived(self) -> dict[str, Any]:
        """What is shown and follows from the rest.

        Returns
        -------
        dict
            ``left``: share of MACs, parameters and bytes (by file format) that is left.
            ``quality_change``: last step minus original. ``prediction_error``: of the whole
            net's time, relative to the measured one.
        """
        counts = {"macs": self.macs, "params": self.params, **self.bytes}
        left = {
            name: pair["compressed"] / pair["original"]
            for name, pair in counts.items()
            if pair.get("original") and "compressed" in pair
        }
        before, after = self.quality.get("original", {}), self.quality_now
        change = {name: after[name] - before[name] for name in before.keys() & after.keys()}
        errors = {}
        if self.search and (measured := self.search.measured):
            times = {"original": measured.original, "compressed": measured.compressed}
            errors = {
                name: predicted / times[name].median_ms - 1
                for name, predicted in self.search.predicted_ms.items()
                if name in times and times[name].median_ms
            }
        return {"left": left, "quality_change": change, "prediction_error": errors}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; what is not finite becomes null."""
        content = {**asdict(self), "derived": self.derived()}
        return {"format": FORMAT, "version": VERSION, **_finite(content)}

    def to_frame(self, what: str = "layers") -> Any:
        """``layers`` or ``curve`` as a ``pandas.DataFrame``; DataError where there is no pandas."""
        from factorize.report import notebook

        return notebook.frame_of(self, what)

    def figure(self, what: str = "curve") -> Figure:
        """``curve`` or ``layers`` as a figure of matplotlib; DataError where nothing was timed."""
        from factorize.report import notebook

        return notebook.figure_of(self, what)

    def _repr_html_(self) -> str:
        from factorize.report import notebook

        return notebook.report_html(self)

    def save(self, path: str | Path) -> None:
        """Write the report as JSON.

        Raises
        ------
        OutputError
            The file cannot be written; what was there before stays.
        """
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False, default=str)
        write_whole(path, text + "\n")


def layer_reports(
    plan: Plan,
    fitted: Mapping[str, Factorization] = {},
    times: Mapping[str, Mapping[str, Any]] = {},
) -> tuple[LayerReport, ...]:
    """One entry per convolution of the plan, its errors predicted where there is no fit.

    Parameters
    ----------
    times
        By layer: ``ms_original``, ``ms``, ``speedup_low``, ``speedup_high``, ``elsewhere``, as far
        as known.
    """
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
            error=fitted[layer.spec.name].error if layer.spec.name in fitted else layer.error,
            held_out_error=getattr(fitted.get(layer.spec.name), "held_out_error", None),
            skip_reason=layer.skip_reason,
            notes=layer.notes,
            **times.get(layer.spec.name, {}),
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
