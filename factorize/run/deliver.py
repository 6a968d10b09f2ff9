"""What a run delivers: files, times, the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from factorize import export
from factorize.errors import ExportError
from factorize.measure import (
    RecordedTimes,
    Target,
    count,
    environment,
    measured_on,
    own_names,
    pairs,
    runtimes,
    speedups,
)
from factorize.report import CUT_SHORT, REAL, Report, layer_reports
from factorize.run.in_integers import InIntegers, drop_data, int8_speedups, quantize_delivered
from factorize.run.records import Compressed, Journal, Request
from factorize.run.steps import find
from factorize.search import completed, nets_on
from factorize.tune import FinetuneResult
from factorize.types import Speedup

UNSTEADY = 1.5  # a spread of speedups above this is told


@dataclass
class Delivered:
    """The exported files and the measured times, as far as they are made.

    Attributes
    ----------
    also
        Of these, what a search was to keep to on other targets.
    int8
        What is known of ``model.onnx`` where it computes in integers.
    interrupt
        What stopped it on the way.
    """

    exports: export.Exports
    speed: tuple[Speedup, ...] = ()
    also: tuple[Speedup, ...] = ()
    times: dict[str, dict[str, Any]] = field(default_factory=dict)
    int8: InIntegers | None = None
    interrupt: KeyboardInterrupt | None = None


def deliver(
    request: Request, made: Compressed, folder: Path, targets: Sequence[Target], journal: Journal,
    *, files: bool,
) -> Delivered:  # fmt: skip
    """Export both models, and measure their time.

    Stopped by Ctrl-C or SIGTERM once the weights are written, it keeps what there is.

    Parameters
    ----------
    targets
        What time is measured on; none where it is not.
    files
        Whether files are wanted for themselves.
    """
    delivered = Delivered(export.Exports(folder))
    try:
        if targets or files or request.int8:
            request.tell("export")
            with journal.timed("export"):
                export.export_all(
                    delivered.exports, request.model, made.model, made.cut.plan,
                    request.example_input, request.onnx,
                )  # fmt: skip
            if request.int8:
                outcome = made.cut.outcome
                delivered.int8 = quantize_delivered(
                    delivered.exports, request, journal, timed=bool(targets),
                    asked=outcome.report.budget.get("speedup", 1.0) if outcome else 1.0,
                )  # fmt: skip
            if request.openvino_xml and delivered.exports.check:
                _write_openvino(delivered.exports)
            if files:
                journal.remarks += export.hub_files.write(request.model, folder)
        if targets:
            request.tell("measure latency")
            with journal.timed("latency"):
                _measure(delivered, request, made, targets, journal)
            journal.remarks += request.timer.cache.notes + _unsteady(delivered.speed)
        if delivered.int8:
            drop_data(delivered.exports)
    except KeyboardInterrupt as interrupt:
        if not (files and (folder / "model.safetensors").exists()):
            raise
        delivered.interrupt = interrupt
        journal.remarks.append(CUT_SHORT)
    return delivered


def _write_openvino(exports: export.Exports) -> None:
    try:
        export.write_openvino(exports.onnx_files[1])
    except ExportError as error:
        exports.failures.append(str(error))


def _measure(
    delivered: Delivered, request: Request, made: Compressed, targets: Sequence[Target],
    journal: Journal,
) -> None:  # fmt: skip
    """Time the nets on each target, and the layers on those that the run is about."""
    found = [_timed(delivered, request, made, target, journal) for target in targets]
    offered = made.cut.outcome.offered if made.cut.outcome else None
    count = 1 + len(request.timer.beside)
    delivered.speed = tuple(one for some in found for one in some)
    delivered.also = tuple(some[0] for some in found[1:count] if some)
    delivered.times = request.timer.everywhere(made.cut.plan, offered)


def _timed(
    delivered: Delivered, request: Request, made: Compressed, target: Target, journal: Journal
) -> list[Speedup]:
    """Times of the nets on a target; none where it does not take them, which loses no files."""
    if isinstance(request.timer, RecordedTimes):  # nothing that is timed here tells of it
        sites = find(request.model, request.example_input)
        there = nets_on(request.timer, request.model, request.example_input, sites)
        return [there.speedup(made.cut.plan.factorized)]
    nets = delivered.exports.onnx_files, request.model, made.model, request.example_input
    found: list[Speedup] = []
    try:
        if delivered.int8:
            found += int8_speedups(delivered.exports, request, made.model, target)
        else:  # in integers there is none
            in_float = replace(target, dtype="float32") if target.dtype == "int8" else target
            found += speedups(*nets, [in_float])
        journal.remarks += pairs.remarks(*nets, target)
    except ExportError as error:
        delivered.exports.failures.append(str(error))
    return found


def _unsteady(speed: Sequence[Speedup]) -> list[str]:
    return [
        f"{one.runtime} on {one.device}: the speedup varied from {one.speedup_p10:.2f} to "
        f"{one.speedup_p90:.2f}, as on a busy machine; measure again on a quiet one"
        for one in speed
        if one.speedup_p90 > UNSTEADY * one.speedup_p10
    ]


def reported(
    request: Request, made: Compressed, delivered: Delivered, control: FinetuneResult | None,
    journal: Journal, *, name: str | None, stages: int, looked: dict[str, Any],
) -> Report:  # fmt: skip
    """All that was measured, as data; ``looked`` is what `first_look` found."""
    costs = [count(one, request.example_input) for one in (request.model, made.model)]
    (params, macs, unknown), (new_params, new_macs, _) = costs
    journal.remarks += [
        f"MACs of {name} are not counted: no formula is known for them" for name in unknown
    ]
    plan, outcome = made.cut.plan, made.cut.outcome
    speed = delivered.speed[0] if delivered.speed else None
    journal.remarks += [
        f"slower than the original on {one.runtime}: {one.speedup:.2f}x"
        for one in delivered.also
        if one.speedup_p90 < 1
    ]
    timers = request.timer, *request.timer.beside
    asked = [runtimes.get(one.target.runtime) for one in timers]
    return Report(
        model=name or type(request.model).__name__,
        settings={
            **plan.settings,
            "fit": {
                **asdict(request.fit),
                "how": request.how,
                "reconstruct": made.cut.fitted.blocks is not None,
            },
            "finetune": asdict(request.tuning) if request.tuning.epochs else None,
            "stages": stages,
            "outputs": {
                "kind": request.outputs.kind,
                "loss": _name(request.outputs.loss),
                "score": _name(request.outputs.score),
            },
            "higher_is_better": own_names(
                journal.quality.get("original", {}), request.metric, request.outputs
            ),
            "int8_possible": all("int8" in one.dtypes for one in asked),
            "other_targets": [
                one.name
                for one in map(runtimes.get, runtimes.names())
                if one.reads == "onnx" and one not in asked and one.missing() is None
            ],
            "data": "none" if request.data is None else "made up" if request.data.made_up else REAL,
            "input": looked,
            "device": request.device,
            "seed": request.seed,
        },
        environment=environment(),
        layers=layer_reports(plan, made.cut.fitted.layers, delivered.times),
        params={"original": params, "compressed": new_params},
        macs={"original": macs, "compressed": new_macs},
        bytes=delivered.exports.sizes,
        quality=journal.quality,
        quality_of=measured_on(request.data, request.metric),
        speed=delivered.speed,
        recalibration=asdict(made.recalibration) if made.recalibration else None,
        finetuning=asdict(made.tuned) if made.tuned else None,
        control=asdict(control) if control else None,
        onnx=asdict(delivered.exports.check) if delivered.exports.check else None,
        seconds=journal.stopwatch.seconds,
        failures=tuple(delivered.exports.failures),
        notes=tuple(journal.remarks),
        search=completed(outcome, speed, delivered.also) if outcome else None,
        int8=delivered.int8.reported() if delivered.int8 else None,
        curve=outcome.curve if outcome else (),
    )


def _name(function: Any) -> str | None:
    return function and getattr(function, "__name__", type(function).__name__)
