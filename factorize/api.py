"""The whole program: `compress`, its stages in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from factorize import export, tune
from factorize import measure as measuring
from factorize import plan as planning
from factorize.checks import check_not_empty, check_runs, class_remark, exists, resolve_device
from factorize.errors import DataError, PlanError, RankError
from factorize.fit import FitConfig, apply_, as_fitted, fit_remarks
from factorize.fit import fit as fit_layers
from factorize.measure import Target
from factorize.plan import Budget
from factorize.report import Report, layer_reports, write_html
from factorize.search import Outcome, SearchConfig, completed, latency_model, run_search
from factorize.stages import beside, copied, make_plan, measure
from factorize.tensor.call import batch_size
from factorize.types import Data, Metric, Plan, Progress

OUTPUTS = (
    "model.safetensors", "plan.json", "model.onnx", "model.pt2", "report.json", "report.html",
)  # fmt: skip
CHECKPOINT, SEARCHED = "finetune.ckpt", "finetune.plan.json"
RESUMED = CHECKPOINT, SEARCHED
UNSTEADY = 1.5  # a spread of speedups above this is told


@dataclass(frozen=True)
class Result:
    """A compressed model, how it was made, and what that cost and won."""

    model: nn.Module
    plan: Plan
    report: Report


def compress(
    model: nn.Module,
    example_input: Any,
    *,
    plan: Plan | None = None,
    budget: Budget | None = None,
    target: Target | None = None,
    search: SearchConfig | None = None,
    data: Data | None = None,
    evaluate: Metric | Callable[[nn.Module], Any] | None = None,
    fit: FitConfig | None = None,
    finetune: int | tune.FinetuneConfig = 0,
    out: str | Path | None = None,
    force: bool = False,
    latency: bool = True,
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    refresh: bool = False,
    command: str | None = None,
    name: str | None = None,
    notes: Sequence[str] = (),
    progress: Progress | None = None,
    **choice: Any,
) -> Result:
    """Make a smaller, faster copy of a trained model, and measure what that cost and won.

    Parameters
    ----------
    model
        Is not changed. The copy has its mode, dtype and device.
    example_input
        See `find`.
    plan
        To apply; without one it is made by `make_plan` with ``**choice``: ``method``, ``rank``,
        ``energy``, ``include``, ``exclude``, ``allow_costlier``.
    budget
        To search the plan of least loss within: then ``method`` may be ``auto`` or several names
        with commas between them, of ``choice`` only ``include`` and ``exclude`` may be there too.
    target
        What time is measured on; without one ONNX Runtime, and for the report torch too.
    search
        How to search, if not the default way; with a ``sweep``, no budget is needed.
    data
        The chains are fitted to what the layers put out for images of its train split, batch norms
        recalibrated and the copy fine-tuned on it; the report is on its test split.
    evaluate
        ``model -> float`` or ``{name: float}``: a measure of your own, for the report; set the
        function's attribute ``higher_is_better = False`` where that is so. It chooses nothing,
        as it may well read test images.
    fit
        What the chains are fitted to, if not the default: with `data` in sequence to the original's
        outputs, without to the weights.
    finetune
        Epochs of distillation from the original on `data`, or all settings.
    out
        Folder for weights, plan, ONNX, ``.pt2`` and report. Nothing is written without.
    force
        Whether such files may be there already.
    latency
        Whether to measure time for the report (for ONNX Runtime both models are exported).
    device
        Where to tune and evaluate: ``auto``, ``cpu`` or ``cuda``.
    refresh
        Measure the time of layers anew, whatever the cache of earlier runs holds.
    command, name, notes
        For the report.

    Raises
    ------
    FactorizeError
        One of its kinds; nothing is written then. An export that fails does not lose the rest:
        it is told in ``result.report.failures``.
    """
    device = resolve_device(device)
    metric = measuring.as_metric(evaluate)
    config = tune.FinetuneConfig(finetune, seed=seed) if isinstance(finetune, int) else finetune
    fit = fit or FitConfig()
    if lossless := choice.get("rank") == "lossless":
        if config.epochs or fit.how not in (None, "weights") or fit.reconstruct:
            raise RankError("--lossless changes nothing. Drop --finetune, --fit, --reconstruct.")
        fit = replace(fit, how="weights")
    how = fit.resolved(data)
    if config.epochs and data is None:
        raise DataError("finetune: must have images to tune on, got none. Give --data.")
    if config.resume and not config.epochs:
        raise DataError("resume: goes on with a fine-tuning, got 0 epochs. Give --finetune EPOCHS.")
    if out is not None and config.epochs and config.checkpoint is None:
        config = replace(config, checkpoint=Path(out, CHECKPOINT))
    if config.resume and config.checkpoint and not exists(config.checkpoint):
        raise tune.missing_checkpoint(config.checkpoint)  # before any work is done
    overwrite = force or bool(config.resume and config.checkpoint)
    example_input = beside(model, example_input)
    targets = _targets(target, device, threads, batch_size(example_input))
    timer = latency_model(targets[0], refresh=refresh)
    seconds: dict[str, float] = {}
    remarks = [*notes, *(data.notes if data else ())]

    with (
        timer.cache,
        export.output_folder(out, OUTPUTS, overwrite, RESUMED) as (folder, publish),
    ):
        fit.check_free(overwrite)

        def rated(one: nn.Module) -> dict[str, float]:
            return measure(
                model, one, example_input, data=data, evaluate=metric, device=device, seed=seed
            )

        outcome: Outcome | None = None
        searching = budget is not None or search is not None
        if searching and plan is not None:
            raise PlanError("--plan: a plan has its ranks already. Leave the budget out.")
        if searching and config.resume and out is not None and Path(out, SEARCHED).exists():
            # Times differ from run to run, and what was tuned so far belongs to this plan.
            plan, choice, searching = planning.load_plan(Path(out, SEARCHED)), {}, False
            remarks.append("resumed with the plan that was searched before")
        if searching:
            with _timed(seconds, "search"):
                outcome = run_search(
                    model, example_input, budget, search or SearchConfig(), timer, data=data,
                    fit=fit, rate=rated, device=device, seed=seed, progress=progress, **choice,
                )  # fmt: skip
            plan, fitted = outcome.plan, outcome.fitted
            remarks += outcome.notes
        else:
            with _timed(seconds, "plan"):
                ordered = plan is not None
                plan = make_plan(
                    model, example_input, edited=plan, seed=seed, progress=progress, **choice
                )
                check_not_empty(plan)
            with _timed(seconds, "factorize"):
                fitted = fit_layers(
                    model, plan, fit, data=data, any_order=not ordered, device=device, seed=seed,
                    progress=progress,
                )  # fmt: skip
        plan = as_fitted(plan, fitted)
        check_not_empty(plan)
        if not lossless:
            remarks += fit_remarks(how, fitted, reconstructed=fit.reconstruct)
        compressed = apply_(copied(model), fitted)
        remarks += class_remark(check_runs(compressed, plan, example_input), data)

        quality: dict[str, dict[str, float]] = {}

        def rate(stage: str, one: nn.Module) -> None:
            if progress:
                progress(f"evaluate {stage}", 0, 0, {})
            with _timed(seconds, "evaluate"):
                quality[stage] = rated(one)

        rate("original", model)
        rate("rewritten", compressed)

        recalibration = tuning = None
        if data is not None and not lossless:
            with _timed(seconds, "recalibrate"):
                recalibration = tune.recalibrate(
                    compressed, model, data, device=device, progress=progress
                )
            remarks.append(f"batch-norm recalibration: {recalibration.reason}")
            if recalibration.applied:
                rate("recalibrated", compressed)
        if data is not None and config.epochs:
            if outcome and config.checkpoint:
                planning.save_plan(plan, config.checkpoint.with_name(SEARCHED))
            with _timed(seconds, "finetune"):
                tuning = tune.finetune(
                    compressed, model, data, config, device=device, progress=progress,
                    origin={"fit": how, "images": fit.images, "reconstruct": fit.reconstruct,
                            "calibration": str(fit.calibration)},
                )  # fmt: skip
            rate("finetuned", compressed)
            if tuning.interrupted:
                done = f"{tuning.epochs_done:.2f} of {config.epochs}"
                remarks.append(f"fine-tuning interrupted after {done} epochs; --resume goes on")
            if tuning.stopped:
                remarks.append(f"fine-tuning stopped early: {tuning.stopped}")

        onnx, sizes, failures, speed, times = None, {}, [], (), {}
        if latency or out is not None:
            if progress:
                progress("export", 0, 0, {})
            with _timed(seconds, "export"):
                onnx, sizes, failures = export.export_all(
                    folder, model, compressed, plan, example_input
                )
        if latency:
            if progress:
                progress("measure latency", 0, 0, {})
            with _timed(seconds, "latency"):
                speed = measuring.speedups(folder, model, compressed, example_input, targets)
                times = timer.of_plan(plan, outcome.offered if outcome else None)
            remarks += timer.cache.notes
            remarks += [
                f"{one.runtime} on {one.device}: the speedup varied from {one.speedup_p10:.2f} to "
                f"{one.speedup_p90:.2f}, as on a busy machine; measure again on a quiet one"
                for one in speed
                if one.speedup_p90 > UNSTEADY * one.speedup_p10
            ]
        (params, macs), (new_params, new_macs) = (
            measuring.count(one, example_input) for one in (model, compressed)
        )
        report = Report(
            model=name or type(model).__name__,
            settings={
                **plan.settings,
                "fit": {**asdict(fit), "how": how},
                "finetune": asdict(config) if config.epochs else None,
                "device": device,
                "seed": seed,
            },
            environment=measuring.environment(),
            layers=layer_reports(plan, fitted.layers, times),
            params={"original": params, "compressed": new_params},
            macs={"original": macs, "compressed": new_macs},
            bytes=sizes,
            quality=quality,
            quality_of=measuring.measured_on(data, metric),
            speed=tuple(speed),
            recalibration=asdict(recalibration) if recalibration else None,
            finetuning=asdict(tuning) if tuning else None,
            onnx=asdict(onnx) if onnx else None,
            seconds=seconds,
            failures=tuple(failures),
            notes=tuple(remarks),
            search=completed(outcome, speed[0] if speed else None) if outcome else None,
            curve=outcome.curve if outcome else (),
        )
        if out is not None:
            planning.save_plan(plan, folder / "plan.json")
            report.save(folder / "report.json")
            write_html(report, folder / "report.html", command)
            publish(keep_work=bool(tuning and tuning.interrupted))
    return Result(compressed, plan, report)


def _targets(target: Target | None, device: str, threads: int | None, batch: int) -> list[Target]:
    """What to measure the two models on; the first is the one that the run is about."""
    if target is not None:
        return [target]
    runtimes = ["onnxruntime", "torch-cpu", *(["cuda"] if device == "cuda" else [])]
    return [Target(runtime, threads, batch) for runtime in runtimes]


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
