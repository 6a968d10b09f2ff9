"""A run of the whole program, stage by stage; `api.compress` calls them in order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from factorize import graph, tune
from factorize import plan as planning
from factorize.checks import check_not_empty, check_runs, class_remark
from factorize.fit import FitConfig, Fitted, apply_, as_fitted, fit_remarks
from factorize.fit import fit as fit_layers
from factorize.measure import LatencyModel
from factorize.report import CONTROL
from factorize.search import Outcome, SearchConfig, run_search
from factorize.stages import copied, make_plan, measure
from factorize.staging import Wish, of_stage, searched
from factorize.tuning import control, control_checkpoint, tuned
from factorize.types import Data, Metric, Plan, Progress

REMEMBERED = 2.0
"""Points of top-1 by which known images are answered better than new ones, that are told."""


@dataclass
class Run:
    """The state of a run.

    Attributes
    ----------
    quality, seconds
        By stage.
    remarks
        What its user should know.
    output
        Of the rewritten model for the example input.
    """

    model: nn.Module
    example_input: Any
    data: Data | None
    metric: Metric | None
    fit: FitConfig
    how: str
    tuning: tune.FinetuneConfig
    timer: LatencyModel
    device: str
    seed: int
    progress: Progress | None
    remarks: list[str]
    quality: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    output: Any = None
    outcome: Outcome | None = None
    recalibration: tune.Recalibration | None = None
    tuned: tune.FinetuneResult | None = None
    control: tune.FinetuneResult | None = None

    def cut(
        self, reference: nn.Module, wish: Wish, kept: Path | None, last: bool
    ) -> tuple[Plan, Fitted | None]:
        """Choose methods and ranks for a model, and fit the chains; None where none is worth it.

        Parameters
        ----------
        kept
            The plan that an interrupted run searched: times differ from run to run, and what was
            tuned so far belongs to it.
        last
            Whether it is an error then: the first of several stages may well cut too little.
        """
        if wish.searching and kept is not None and kept.exists():
            wish = Wish(planning.load_plan(kept), None, None, {})
            self.remarks.append("resumed with the plan that was searched before")
        if wish.searching:
            with self.timed("search"):
                self.outcome = run_search(
                    reference, self.example_input, wish.budget, wish.search or SearchConfig(),
                    self.timer, data=self.data, fit=self.fit, rate=self._rated,
                    device=self.device, seed=self.seed, progress=self.progress, **wish.choice,
                )  # fmt: skip
            plan, fitted = self.outcome.plan, self.outcome.fitted
            self.remarks += self.outcome.notes
        else:
            with self.timed("plan"):
                plan = make_plan(
                    reference, self.example_input, edited=wish.plan, seed=self.seed,
                    progress=self.progress, **wish.choice,
                )  # fmt: skip
                if not last and not plan.factorized:
                    return plan, None
                check_not_empty(plan)
            with self.timed("factorize"):
                fitted = fit_layers(
                    reference, plan, self.fit, data=self.data, any_order=wish.plan is None,
                    device=self.device, seed=self.seed, progress=self.progress,
                )  # fmt: skip
        plan = as_fitted(plan, fitted)
        check_not_empty(plan)
        return plan, fitted

    def compress(self, wishes: list[Wish]) -> tuple[nn.Module, Plan, Fitted]:
        """Cut, recalibrate and tune, once for each wish, from the last one's result on."""
        reference = self.model
        self._forget(len(wishes))
        exact = wishes[-1].choice.get("rank") == "lossless"
        for number, wish in enumerate(wishes, 1):
            last = number == len(wishes)
            name = "" if len(wishes) == 1 else f", stage {number} of {len(wishes)}"
            tuning = of_stage(self.tuning, number, len(wishes))
            kept = searched(tuning.checkpoint) if tuning.checkpoint and tuning.resume else None
            plan, fitted = self.cut(reference, wish, kept, last)
            if fitted is None:
                self.remarks.append(f"no layer is cheaper as a chain{name}: nothing was cut")
                continue
            if last and not exact:
                self.remarks += fit_remarks(self.how, fitted)
                if reference is not self.model:
                    self.remarks.append("errors of layers are to the net of the stage before")
            compressed = apply_(copied(reference), fitted)
            self.output = check_runs(compressed, plan, self.example_input)
            if last:
                self.remarks += class_remark(self.output, self.data)
            if not self.quality:
                self.rate("original", self.model)
            self.rate(f"rewritten{name}", compressed)
            if self.data is not None and not exact:
                self._recalibrate(compressed, self.data, name)
                if self.tuning.epochs:
                    self._tune(compressed, plan, self.data, tuning, name)
                    if self.tuned and (self.tuned.interrupted or self.tuned.diverged):
                        break
            if not last:
                reference = graph.collapse_(copied(compressed), plan)
        assert fitted is not None
        return compressed, plan, fitted

    def _forget(self, stages: int) -> None:
        """Remove what an earlier run left of later tunings, which this one is not to resume."""
        if self.tuning.resume or not self.tuning.epochs:
            return
        of_stages = [of_stage(self.tuning, number, stages).checkpoint
                     for number in range(2, stages + 1)]  # fmt: skip
        for path in (*of_stages, control_checkpoint(self.tuning)):
            if path is not None and path.is_file():
                path.unlink()

    def _recalibrate(self, compressed: nn.Module, data: Data, name: str) -> None:
        with self.timed("recalibrate"):
            self.recalibration = tune.recalibrate(
                compressed, self.model, data, device=self.device, progress=self.progress
            )
        self.remarks.append(f"batch-norm recalibration{name}: {self.recalibration.reason}")
        if self.recalibration.applied:
            self.rate(f"recalibrated{name}", compressed)

    def _tune(
        self, compressed: nn.Module, plan: Plan, data: Data, config: tune.FinetuneConfig, name: str
    ) -> None:
        config = self._with_norms(config)
        if config.checkpoint and self.outcome:
            planning.save_plan(plan, searched(config.checkpoint))
        graph.balance_(compressed, plan)
        with self.timed("finetune"):
            self.tuned = tuned(
                compressed, self.model, plan, data, config, device=self.device,
                progress=self.progress, name=f"fine-tuning{name}",
                origin={"fit": self.how, "images": self.fit.images, "stage": name,
                        "reconstruct": self.fit.reconstruct,
                        "calibration": str(self.fit.calibration)},
            )  # fmt: skip
        self.rate(f"finetuned{name}", compressed)
        if self.tuned.interrupted:
            done = f"{self.tuned.epochs_done:.2f} of {config.epochs}"
            self.remarks.append(
                f"fine-tuning{name} interrupted after {done} epochs; --resume goes on"
            )
        if self.tuned.stopped:
            self.remarks.append(f"fine-tuning{name} stopped early: {self.tuned.stopped}")

    def _with_norms(self, config: tune.FinetuneConfig) -> tune.FinetuneConfig:
        if config.batch_norm != "auto" or self.recalibration is None:
            return config
        return replace(config, batch_norm="batch" if self.recalibration.applied else "fixed")

    def compare(self) -> None:
        """Tune the original alike, where there is something for it to learn."""
        config, data = self._with_norms(self.tuning), self.data
        if not config.epochs or not config.control or data is None or self.tuned is None:
            return
        if self.tuned.interrupted or self.tuned.diverged:
            return
        if not (config.label_weight and tune.uses_labels(data, tune.tensors(self.output)[0])):
            self.remarks.append(
                "no control: no labels are tuned to, so that the original has nothing to learn"
            )
            return
        with self.timed("tune the original"):
            model, self.control = control(
                self.model, data, config, device=self.device, progress=self.progress
            )
        self.rate(CONTROL, model)
        if self.control.interrupted:
            self.remarks.append("tuning the original interrupted; --resume goes on")
        if self.control.stopped:
            self.remarks.append(f"tuning the original stopped early: {self.control.stopped}")
        if self.tuned.best_epoch == 0 and data.test is not None:
            self._tell_of_known_images(100 * self.control.history[0]["score"])

    def _tell_of_known_images(self, known: float) -> None:
        """Say so if the start may have won by what the original remembers of held-out images."""
        new = self.quality["original"]["top1"]
        if known > new + REMEMBERED:
            self.remarks.append(
                f"fine-tuning kept its start, the best on held-out images. The original knows "
                f"those ({known:.1f} % right, {new:.1f} % of the test split), which favours what "
                "is close to it: may_stay = false in a --recipe takes the best epoch"
            )

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended a tuning, which --resume goes on with."""
        return any(one.interrupted for one in (self.tuned, self.control) if one)

    def rate(self, stage: str, one: nn.Module) -> None:
        """Measure what a model is worth."""
        if self.progress:
            self.progress(f"evaluate {stage}", 0, 0, {})
        with self.timed("evaluate"):
            self.quality[stage] = self._rated(one)

    def _rated(self, one: nn.Module) -> dict[str, float]:
        return measure(
            self.model, one, self.example_input, data=self.data, evaluate=self.metric,
            device=self.device, seed=self.seed,
        )  # fmt: skip

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add to the seconds of a stage."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
