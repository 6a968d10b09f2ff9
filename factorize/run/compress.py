"""The whole program: `compress`, its steps in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from factorize import export, tune
from factorize.data.synthetic import MadeUp
from factorize.errors import DataError, RankError
from factorize.fit import FitConfig
from factorize.measure import Target, as_metric
from factorize.onnx_graph import Twin
from factorize.plan import Budget, save_plan
from factorize.program import ProgramTwin
from factorize.report import Report, shown, verdict, write_html
from factorize.run.checks import (
    check_configs,
    check_int8,
    check_not_empty,
    check_recorded,
    check_twins,
    half_remark,
    resolve_device,
    resolved_outputs,
)
from factorize.run.deliver import deliver, reported
from factorize.run.files import RUN_FILE, outputs_of
from factorize.run.first_look import first_look
from factorize.run.jobs import assist, dismiss
from factorize.run.made_up import check_real, data_of, make_up
from factorize.run.make_plan import ruled_plan
from factorize.run.pipeline import cut_and_tune, tune_original
from factorize.run.records import EVERYWHERE, Journal, Request
from factorize.run.rounds import Selection, Wish, rounds_of, settled, work_files
from factorize.run.steps import beside
from factorize.run.targets import as_targets, computing, timed_on
from factorize.search import SearchConfig, latency_model
from factorize.system import processes
from factorize.tensor.call import batch_size
from factorize.tensor.noise import INT8, with_noise
from factorize.tensor.reference import KEPT, Reference
from factorize.tensor.wrappers import prepared
from factorize.types import Data, Metric, Plan, Progress


@dataclass(frozen=True, repr=False)
class Result:
    """A compressed model, how it was made, and what that cost and won."""

    model: nn.Module
    plan: Plan
    report: Report

    def summary(self) -> str:
        """What the command line prints: the verdict, the layers, sizes, quality and time."""
        return shown(self.report)

    def __repr__(self) -> str:
        told = verdict(self.report)
        return (
            f"Result: {told[0] if told else 'no time was measured'}; "
            f"{len(self.plan.factorized)} of {len(self.plan.layers)} layers are chains. "
            "print(result.summary()) shows them."
        )

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def compress(
    model: nn.Module,
    example_input: Any,
    *,
    method: str | None = None,
    rank: int | float | str | None = None,
    energy: float | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    allow_costlier: bool = False,
    plan: Plan | None = None,
    budget: Budget | None = None,
    target: Target | str | None = None,
    also: Target | str | Sequence[Target | str] = (),
    search: SearchConfig | None = None,
    data: Any = None,
    outputs: str | None = None,
    loss: Callable[[Any, Any, Any], Tensor] | None = None,
    score: Callable[[Any, Any, Any], Any] | None = None,
    evaluate: Metric | Callable[[nn.Module], Any] | None = None,
    fit: FitConfig | None = None,
    finetune: int | tune.FinetuneConfig = 0,
    stages: int = 1,
    int8: bool | Literal["all"] = False,
    onnx: export.OnnxConfig | None = None,
    openvino_xml: bool = False,
    out: str | Path | None = None,
    force: bool = False,
    latency: bool = True,
    device: Any = "auto",
    threads: int | None = None,
    seed: int = 0,
    refresh: bool = False,
    command: str | None = None,
    run_file: str | None = None,
    name: str | None = None,
    notes: Sequence[str] = (),
    progress: Progress | None = None,
) -> Result:
    """Make a smaller, faster copy of a trained model, and measure what that cost and won.

    In a job of several processes (``accelerate launch``, ``torchrun``) each calls this, with the
    same arguments: they tune together, the main one does the rest; all return the same.

    Parameters
    ----------
    model
        Is not changed. The copy has its mode, dtype and device. A compiled or parallel model is
        taken out of what wraps it.
    example_input
        See `find`.
    method
        One for all layers; None: `spatial_svd`, and `channel_svd` for 1-D and linear ones. With a
        budget, ``auto`` or several names with commas between them: the best one for each layer.
    rank, energy, include, exclude, allow_costlier
        See `make_plan`. With a budget, which chooses ranks itself, only `include` and `exclude`.
    plan
        To apply, in place of making one.
    budget
        To search the plan of least loss within.
    target
        What time is measured on, or the name of a runtime; without one ONNX Runtime, and for the
        report torch too.
    also
        Other targets that it has to run on: a search replaces no layer by what is not faster on all
        of them, and the report has the times on each.
    search
        How to search, if not the default way; with a ``sweep``, no budget is needed.
    data
        Whatever holds images, see `data.as_data`. The chains are fitted to what the layers put out
        for images of its train split, batch norms recalibrated and the copy fine-tuned on it; the
        report is on its test split. None: made-up images, see `data.synthetic`, where the model
        takes images, video or sound and `fit` does not say otherwise.
    outputs, loss, score
        What the model's outputs mean, and a loss and a score of your own, see `Outputs`; in place
        of those that `data` has. What outputs mean is guessed unless it is said, and the guess
        told.
    evaluate
        ``model -> float`` or ``{name: float}``: a measure of your own, for the report; set the
        function's attribute ``higher_is_better = False`` where that is so. It chooses nothing,
        as it may well read test images.
    fit
        What the chains are fitted to, if not the default: with images, made up or not, in sequence
        to the original's outputs, without to the weights.
    finetune
        Epochs of distillation from the original on `data`, or all settings. The original is tuned
        alike, and stands beside the result: what it gains is not the factorization's.
    stages
        Cut in so many rounds, each of the same share, and tune after each: the chains of one are
        multiplied out and cut again (MUSCO, Gusak 2019). Needs a budget of shares or time, or a
        share as rank.
    int8
        Whether ``model.onnx`` is to compute in 8-bit integers, see `quantize_onnx`: the chains are
        fitted for it, and the ranges are those of `data`. Layers that are measured to be slower so,
        or to lose too much, stay in float, but for ``"all"``. The returned model stays in float.
    onnx
        How ``model.onnx`` is written: operators, names, float16.
    openvino_xml
        Whether to write ``model.xml`` and ``model.bin`` beside it, OpenVINO's own form.
    out
        Folder for weights, plan, ONNX, ``.pt2`` and report. Nothing is written without.
    force
        Whether such files may be there already.
    latency
        Whether to measure time for the report (for ONNX Runtime both models are exported).
    device
        Where to tune and evaluate: ``auto``, ``cpu`` or ``cuda``, or a ``torch.device``.
    refresh
        Measure the time of layers anew, whatever the cache of earlier runs holds.
    command, name, notes
        For the report.
    run_file
        Text of the ``run.toml`` that repeats the run.

    Raises
    ------
    FactorizeError
        One of its kinds; nothing is written then. An export that fails does not lose the rest:
        it is told in ``result.report.failures``.
    """
    check_configs(plan=plan, budget=budget, search=search, fit=fit, finetune=finetune, onnx=onnx)
    target, *others = as_targets(target, also, threads)
    check_recorded(target, budget, search, others)
    if int8 not in (False, True, EVERYWHERE):
        raise DataError(f'int8: must be True, False or "{EVERYWHERE}", got {int8!r}.')
    target, *others = computing((target, *others), int8)
    if openvino_xml:
        export.check_openvino()
    if isinstance(model, Twin):
        for one in (target, *others):
            check_twins(model, onnx, one)
    model, wrapped = prepared(model)
    device = resolve_device(device)
    metric = as_metric(evaluate)
    config = tune.FinetuneConfig(finetune, seed=seed) if isinstance(finetune, int) else finetune
    if isinstance(model, ProgramTwin) and config.batch_norm == "auto":
        config = replace(config, batch_norm="fixed")  # as in the file, where they are in eval mode
    fit = fit or FitConfig()
    if rank == "lossless":
        if config.epochs or fit.how not in (None, "weights") or fit.reconstruct:
            raise RankError("--lossless changes nothing. Drop --finetune, --fit, --reconstruct.")
        fit = replace(fit, how="weights")
    wish = Wish(
        plan, budget, search, Selection(method, rank, energy, include, exclude, allow_costlier)
    )
    wish.check()
    wishes = rounds_of(wish, stages)
    config = settled(config, stages, out)
    if config.tensorboard:
        tune.check_scalars()
    if config.tracker is not None:
        tune.check_tracker(config.tracker)
    example_input = beside(model, example_input)
    data = data_of(example_input, data, fit, seed=seed)
    check_real(data, epochs=config.epochs, budget=budget)
    means = partial(resolved_outputs, model, kind=outputs, loss=loss, score=score)
    meant, guessed = means(None if isinstance(data, MadeUp) else data)
    if isinstance(data, Data):
        data = replace(data, outputs=meant)
    how = fit.resolved(data)
    if int8:
        check_int8(model, data, onnx)
    samples = batch_size(example_input)
    if isinstance(model, Twin):
        samples = max(samples, model.onnx_form.batch)
    targets = timed_on(target, device, threads, samples, int8)
    if isinstance(model, Twin):  # nobody runs it in torch
        targets = targets[:1]
    targets += [one for one in others if one]
    timer = latency_model(targets[0], refresh=refresh, also=targets[1:] if others else ())
    processes.join(device)
    if not processes.is_main():
        return Result(*assist(model, data if isinstance(data, Data) else None, device))
    overwrite = force or bool(config.resume and config.checkpoint)
    try:
        with (
            timer.cache,
            export.output_folder(out, outputs_of(model), overwrite, work_files) as written,
        ):
            folder, publish = written
            fit.check_free(overwrite)
            if isinstance(data, MadeUp):
                if not wish.searching:  # a plan that cannot be is told in less time than they take
                    check_not_empty(
                        ruled_plan(model, example_input, wish.selection, edited=plan, seed=seed)
                    )
                data = make_up(
                    data, model, example_input, outputs=outputs, device=device, seed=seed,
                    progress=progress,
                )  # fmt: skip
                meant, guessed = means(data)
                data = replace(data, outputs=meant)
            request = Request(
                model, example_input, data, meant, metric, fit, how, config,
                onnx or export.OnnxConfig(), timer, device, seed, progress,
                Reference(model, device, KEPT), int8, openvino_xml,
            )  # fmt: skip
            told = [*notes, *wrapped, *half_remark(model), *(data.notes if data else ()), *guessed]
            journal = Journal(told)
            looked = first_look(request)
            with with_noise(INT8 if int8 else 0.0):
                made = cut_and_tune(request, wishes, journal)
            control = tune_original(request, made, journal)
            delivered = deliver(
                request, made, folder, targets if latency else [], journal, files=out is not None
            )
            report = reported(
                request, made, delivered, control, journal, name=name, stages=stages, looked=looked
            )
            if out is not None:
                save_plan(made.cut.plan, folder / "plan.json")
                report.save(folder / "report.json")
                write_html(report, folder / "report.html", command, out)
                if run_file is not None:
                    (folder / RUN_FILE).write_text(run_file, encoding="utf-8", errors="replace")
                tunings = [one for one in (made.tuned, control) if one]
                stopped = delivered.interrupt is not None or any(t.interrupted for t in tunings)
                publish(keep_work=stopped)
            if delivered.interrupt:
                raise delivered.interrupt
    except BaseException as failure:
        dismiss(failure=failure)
        raise
    dismiss((made.cut.plan, report, made.model.state_dict()))
    return Result(made.model, made.cut.plan, report)
