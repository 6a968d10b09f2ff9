"""What the steps of a run hand on: what was asked for, what was made of it, and what was noted."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from factorize.export import OnnxConfig
from factorize.fit import FitConfig, Fitted
from factorize.measure import LatencyModel, worth
from factorize.outputs import Outputs
from factorize.search import Outcome
from factorize.system.stopwatch import Stopwatch
from factorize.tensor.reference import Reference
from factorize.tune import FinetuneConfig, FinetuneResult, Recalibration
from factorize.types import Data, Metric, Plan, Progress

EVERYWHERE = "all"
"""int8 for layers that are slower or lose too much in it, too."""


@dataclass(frozen=True)
class Request:
    """What a run is given; no step changes it.

    Attributes
    ----------
    how
        What the chains are fitted to, by `fit` and the data there is.
    timer
        Measures the time of layers.
    reference
        The model, whose outputs are kept.
    int8
        Whether ``model.onnx`` is to compute in integers: True, but for layers that are slower or
        lose too much so;
        `EVERYWHERE`.
    openvino_xml
        Whether OpenVINO's own form is wanted too.
    """

    model: nn.Module
    example_input: Any
    data: Data | None
    outputs: Outputs
    metric: Metric | None
    fit: FitConfig
    how: str
    tuning: FinetuneConfig
    onnx: OnnxConfig
    timer: LatencyModel
    device: str
    seed: int
    progress: Progress | None
    reference: Reference
    int8: bool | Literal["all"] = False
    openvino_xml: bool = False

    def worth(self, model: nn.Module, original: Reference | None = None) -> dict[str, float]:
        """Measure what a model is worth, beside the original or what stands for it."""
        return worth(
            original or self.reference, model, self.example_input, data=self.data,
            metric=self.metric, device=self.device, seed=self.seed, outputs=self.outputs,
        )  # fmt: skip

    def tell(self, step: str) -> None:
        """Tell that a step begins whose length is not known."""
        if self.progress:
            self.progress(step, 0, 0, {})


@dataclass(frozen=True)
class Cut:
    """The chains of one round, chosen and fitted.

    Attributes
    ----------
    outcome
        Of the search, where the plan was searched.
    """

    plan: Plan
    fitted: Fitted
    outcome: Outcome | None


@dataclass(frozen=True)
class Compressed:
    """The model at the end of a round.

    Attributes
    ----------
    output
        Of the rewritten model for the example input.
    """

    model: nn.Module
    cut: Cut
    output: Any
    recalibration: Recalibration | None = None
    tuned: FinetuneResult | None = None

    @property
    def ended_early(self) -> bool:
        """Whether the tuning was interrupted, or diverged."""
        return self.tuned is not None and (self.tuned.interrupted or self.tuned.diverged)


@dataclass
class Journal:
    """What a run notes on its way, for the report.

    Attributes
    ----------
    quality
        By step.
    stopwatch
        Of all steps.
    remarks
        What its user should know.
    """

    remarks: list[str]
    quality: dict[str, dict[str, float]] = field(default_factory=dict)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def timed(self, step: str) -> AbstractContextManager[None]:
        """Add to the seconds of a step."""
        return self.stopwatch.timed(step)
