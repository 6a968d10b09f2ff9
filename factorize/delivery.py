"""What a run delivers: files, times, the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from factorize import export
from factorize import measure as measuring
from factorize.fit import Fitted
from factorize.measure import Target
from factorize.pipeline import Run
from factorize.report import Report, layer_reports
from factorize.search import completed
from factorize.types import Plan, Speedup

UNSTEADY = 1.5  # a spread of speedups above this is told


@dataclass(frozen=True)
class Delivered:
    """Of the exported files and the measured times."""

    onnx: Any
    sizes: dict[str, dict[str, int]]
    failures: tuple[str, ...]
    speed: tuple[Speedup, ...]
    times: dict[str, dict[str, float]]


def deliver(
    run: Run, folder: Path, compressed: nn.Module, plan: Plan, targets: Sequence[Target],
    *, files: bool,
) -> Delivered:  # fmt: skip
    """Export both models, and measure their time.

    Parameters
    ----------
    targets
        What time is measured on; none where it is not.
    files
        Whether files are wanted for themselves.
    """
    onnx, sizes, failures, speed, times = None, {}, [], (), {}
    if targets or files:
        if run.progress:
            run.progress("export", 0, 0, {})
        with run.timed("export"):
            onnx, sizes, failures = export.export_all(
                folder, run.model, compressed, plan, run.example_input
            )
    if targets:
        if run.progress:
            run.progress("measure latency", 0, 0, {})
        with run.timed("latency"):
            speed = tuple(
                measuring.speedups(folder, run.model, compressed, run.example_input, targets)
            )
            times = run.timer.of_plan(plan, run.outcome.offered if run.outcome else None)
        run.remarks += run.timer.cache.notes
        run.remarks += [
            f"{one.runtime} on {one.device}: the speedup varied from {one.speedup_p10:.2f} to "
            f"{one.speedup_p90:.2f}, as on a busy machine; measure again on a quiet one"
            for one in speed
            if one.speedup_p90 > UNSTEADY * one.speedup_p10
        ]
    return Delivered(onnx, sizes, tuple(failures), speed, times)


def reported(
    run: Run, made: Delivered, compressed: nn.Module, plan: Plan, fitted: Fitted,
    *, name: str | None, stages: int,
) -> Report:  # fmt: skip
    """All that was measured, as data."""
    (params, macs), (new_params, new_macs) = (
        measuring.count(one, run.example_input) for one in (run.model, compressed)
    )
    outcome = run.outcome
    speed = made.speed[0] if made.speed else None
    return Report(
        model=name or type(run.model).__name__,
        settings={
            **plan.settings,
            "fit": {**asdict(run.fit), "how": run.how},
            "finetune": asdict(run.tuning) if run.tuning.epochs else None,
            "stages": stages,
            "device": run.device,
            "seed": run.seed,
        },
        environment=measuring.environment(),
        layers=layer_reports(plan, fitted.layers, made.times),
        params={"original": params, "compressed": new_params},
        macs={"original": macs, "compressed": new_macs},
        bytes=made.sizes,
        quality=run.quality,
        quality_of=measuring.measured_on(run.data, run.metric),
        speed=made.speed,
        recalibration=asdict(run.recalibration) if run.recalibration else None,
        finetuning=asdict(run.tuned) if run.tuned else None,
        control=asdict(run.control) if run.control else None,
        onnx=asdict(made.onnx) if made.onnx else None,
        seconds=run.seconds,
        failures=made.failures,
        notes=tuple(run.remarks),
        search=completed(outcome, speed) if outcome else None,
        curve=outcome.curve if outcome else (),
    )
