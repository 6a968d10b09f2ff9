"""The whole program: `compress`, its stages in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from factorize import export, graph, processes, tune
from factorize import measure as measuring
from factorize import plan as planning
from factorize.checks import exists, resolve_device
from factorize.delivery import deliver, reported
from factorize.errors import DataError, PlanError, RankError
from factorize.fit import FitConfig
from factorize.measure import Target
from factorize.pipeline import Run
from factorize.plan import Budget
from factorize.report import Report, write_html
from factorize.search import SearchConfig, latency_model
from factorize.stages import beside, copied, unfitted
from factorize.staging import CHECKPOINT, Wish, of_stage, staged, work_files
from factorize.tensor.call import batch_size
from factorize.tuning import assist, dismiss
from factorize.types import Data, Metric, Plan, Progress

OUTPUTS = (
    "model.safetensors", "plan.json", "model.onnx", "model.pt2", "report.json", "report.html",
)  # fmt: skip


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
    stages: int = 1,
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

    In a job of several processes (``accelerate launch``, ``torchrun``) each calls this, with the
    same arguments: they tune together, the main one does the rest; all return the same.

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
        Epochs of distillation from the original on `data`, or all settings. The original is tuned
        alike, and stands beside the result: what it gains is not the factorization's.
    stages
        Cut in so many steps, each of the same share, and tune after each: the chains of one are
        multiplied out and cut again (MUSCO, Gusak 2019). Needs a budget of shares or time, or a
        share as rank.
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
    if choice.get("rank") == "lossless":
        if config.epochs or fit.how not in (None, "weights") or fit.reconstruct:
            raise RankError("--lossless changes nothing. Drop --finetune, --fit, --reconstruct.")
        fit = replace(fit, how="weights")
    wishes = staged(Wish(plan, budget, search, choice), stages)
    if wishes[0].searching and plan is not None:
        raise PlanError("--plan: a plan has its ranks already. Leave the budget out.")
    if config.epochs and data is None:
        raise DataError("finetune: must have images to tune on, got none. Give --data.")
    for name, asked in (("resume", config.resume), ("stages", stages > 1)):
        if asked and not config.epochs:
            raise DataError(f"{name}: is for a fine-tuning, got 0 epochs. Give --finetune EPOCHS.")
    if out is not None and config.epochs and config.checkpoint is None:
        config = replace(config, checkpoint=Path(out, CHECKPOINT))
    first = of_stage(config, 1, stages).checkpoint
    if config.resume and first and not exists(first):
        raise tune.missing_checkpoint(first)  # before any work is done
    if config.tensorboard:
        tune.check_scalars()
    example_input = beside(model, example_input)
    how = fit.resolved(data)
    targets = _targets(target, device, threads, batch_size(example_input))
    timer = latency_model(targets[0], refresh=refresh)
    processes.join(device)
    if not processes.is_main():
        return _assisted(model, data, device)
    overwrite = force or bool(config.resume and config.checkpoint)
    run = Run(
        model, example_input, data, metric, fit, how, config, timer, device, seed, progress,
        [*notes, *(data.notes if data else ())],
    )  # fmt: skip
    try:
        with (
            timer.cache,
            export.output_folder(out, OUTPUTS, overwrite, work_files) as (folder, publish),
        ):
            fit.check_free(overwrite)
            compressed, plan, fitted = run.compress(wishes)
            run.compare()
            made = deliver(
                run, folder, compressed, plan, targets if latency else [], files=out is not None
            )
            report = reported(run, made, compressed, plan, fitted, name=name, stages=stages)
            if out is not None:
                planning.save_plan(plan, folder / "plan.json")
                report.save(folder / "report.json")
                write_html(report, folder / "report.html", command)
                publish(keep_work=run.interrupted)
    except BaseException as failure:
        dismiss(failure=failure)
        raise
    dismiss((plan, report, compressed.state_dict()))
    return Result(compressed, plan, report)


def _assisted(model: nn.Module, data: Data | None, device: str) -> Result:
    """The main process's result, in one that helped it."""
    plan, report, state = assist(model, data, device)
    compressed = copied(model)
    compressed = graph.rewrite_(compressed, unfitted(compressed, plan))
    compressed.load_state_dict(state)
    return Result(compressed, plan, report)


def _targets(target: Target | None, device: str, threads: int | None, batch: int) -> list[Target]:
    """What to measure the two models on; the first is the one that the run is about."""
    if target is not None:
        return [target]
    runtimes = ["onnxruntime", "torch-cpu", *(["cuda"] if device == "cuda" else [])]
    return [Target(runtime, threads, batch) for runtime in runtimes]
