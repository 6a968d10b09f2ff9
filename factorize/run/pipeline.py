"""From a request to a compressed model: cut, recalibrate, tune, once for each round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from factorize import graph, tune
from factorize.errors import ExportError
from factorize.fit import (
    Fitted,
    apply_,
    as_fitted,
    fit,
    fit_remarks,
    rebased,
    reconstructed,
)
from factorize.plan import load_plan, save_plan
from factorize.report import CONTROL
from factorize.run.checks import check_not_empty, check_runs, class_remark
from factorize.run.in_integers import worth_in_integers
from factorize.run.jobs import control, control_checkpoint, tuned
from factorize.run.made_up import delivered, is_reconstructed, seen_by
from factorize.run.make_plan import ruled_plan
from factorize.run.records import Compressed, Cut, Journal, Request
from factorize.run.rounds import Selection, Wish, of_round, searched
from factorize.run.steps import copied
from factorize.search import SearchConfig, droppable, run_search
from factorize.tensor.reference import KEPT, Reference

REMEMBERED = 2.0
"""Points of top-1 by which known images are answered better than new ones, that are told."""


def cut_and_tune(request: Request, wishes: Sequence[Wish], journal: Journal) -> Compressed:
    """The compressed model, after one round for each wish, each from the last one's result on."""
    reference, made = seen_by(request.model, request.data, device=request.device), None
    _forget(request.tuning, len(wishes))
    for number, wish in enumerate(wishes, 1):
        last = number == len(wishes)
        name = "" if len(wishes) == 1 else f", round {number} of {len(wishes)}"
        config = of_round(request.tuning, number, len(wishes))
        cut = _cut(request, reference, _resumed(wish, config, journal), last, journal)
        if cut is None:
            journal.remarks.append(f"no layer is cheaper as a chain{name}: nothing was cut")
            continue
        exact = wish.selection.rank == "lossless"
        made_up = request.data is not None and request.data.made_up
        if made_up:  # fitted for what it makes of them, and put into the model as it was
            fitted = _reconstructed(request, reference, cut.fitted, journal)
            fitted = rebased(fitted, reference, request.model)
            cut, reference = replace(cut, fitted=fitted), request.model
        if last and not exact:
            journal.remarks += fit_remarks(request.how, cut.fitted)
            if number > 1:
                journal.remarks.append("errors of layers are to the net of the round before")
        made = _rewritten(request, reference, cut, name, last, journal)
        if request.data is not None and not made_up and not exact:
            made = _recalibrated(request, made, name, journal)
            if config.epochs:
                made = _tuned(request, made, config, name, journal)
        if made.ended_early:
            break
        if not last:
            reference = graph.collapse_(copied(made.model), cut.plan)
    assert made is not None
    return made


def _resumed(wish: Wish, config: tune.FinetuneConfig, journal: Journal) -> Wish:
    """The wish, or the plan that an interrupted run searched for it.

    Times differ from run to run, and what was tuned so far belongs to that plan.
    """
    kept = searched(config.checkpoint) if config.checkpoint and config.resume else None
    if not wish.searching or kept is None or not kept.exists():
        return wish
    journal.remarks.append("resumed with the plan that was searched before")
    return Wish(load_plan(kept), None, None, Selection())


def _cut(
    request: Request, reference: nn.Module, wish: Wish, last: bool, journal: Journal
) -> Cut | None:
    """Choose methods and ranks for a model, and fit the chains; None where none is worth it.

    Parameters
    ----------
    last
        Whether it is an error then: the first of several rounds may well cut too little.
    """
    common = {"seed": request.seed, "progress": request.progress}
    if wish.searching:
        _rate_original(request, journal)
        if wish.budget is not None and wish.budget.max_drop is not None:
            droppable(journal.quality["original"], request.outputs)
        made_up = request.data is not None and request.data.made_up
        whole, compared = request.model if made_up else reference, request.reference
        if whole is not request.model:
            compared = Reference(whole, request.device, KEPT)

        def rate(fitted: Fitted | None) -> dict[str, Any]:
            one = delivered(whole, fitted, reference) if fitted else whole
            if fitted and request.int8:
                try:
                    with journal.timed("int8"):
                        return worth_in_integers(request, one, fitted)
                except ExportError as error:
                    journal.remarks.append(f"a net of the curve is rated in float32: {error}")
            return _rated(request, one, compared, journal)

        with journal.timed("search"):
            outcome = run_search(
                reference, request.example_input, wish.budget, wish.search or SearchConfig(),
                request.timer, data=request.data, fit=request.fit,
                rate=rate, device=request.device, stopwatch=journal.stopwatch,
                **wish.selection.searched(), **common,
            )  # fmt: skip
        plan, fitted = outcome.plan, outcome.fitted
        journal.remarks += outcome.notes
    else:
        outcome = None
        with journal.timed("plan"):
            plan = ruled_plan(
                reference, request.example_input, wish.selection, edited=wish.plan, **common
            )
            if not last and not plan.factorized:
                return None
            check_not_empty(plan)
        _rate_original(request, journal)
        with journal.timed("factorize"):
            fitted = fit(
                reference, plan, request.fit, data=request.data, any_order=wish.plan is None,
                device=request.device, **common,
            )  # fmt: skip
    plan = as_fitted(plan, fitted)
    if not (request.int8 and wish.searching):
        check_not_empty(plan)
    elif not plan.factorized:
        journal.remarks.append("int8 alone keeps the budget: no layer was factorized")
    return Cut(plan, fitted, outcome)


def _reconstructed(
    request: Request, reference: nn.Module, fitted: Fitted, journal: Journal
) -> Fitted:
    """The fit to made-up images, its blocks tuned together where that is quick."""
    quick = is_reconstructed(reference, request.example_input, request.fit, request.how)
    if request.data is None or request.int8 or not quick:
        return fitted
    with journal.timed("reconstruct"):
        made = reconstructed(
            reference, fitted, request.fit, request.data, device=request.device,
            seed=request.seed, progress=request.progress,
        )  # fmt: skip
    return made if made.blocks else fitted


def _rewritten(
    request: Request, reference: nn.Module, cut: Cut, name: str, last: bool, journal: Journal
) -> Compressed:
    model = apply_(copied(reference), cut.fitted)
    made = Compressed(model, cut, check_runs(model, cut.plan, request.example_input))
    if last:
        journal.remarks += class_remark(made.output, request.data)
    _rate(request, journal, f"rewritten{name}", model)
    return made


def _recalibrated(request: Request, made: Compressed, name: str, journal: Journal) -> Compressed:
    assert request.data is not None
    try:
        with journal.timed("recalibrate"):
            recalibration = tune.recalibrate(
                made.model, request.model, request.data, device=request.device,
                progress=request.progress,
            )  # fmt: skip
    except tune.IncomparableError as reason:
        journal.remarks.append(f"batch-norm recalibration{name} skipped: {reason}")
        return made
    journal.remarks.append(f"batch-norm recalibration{name}: {recalibration.reason}")
    if recalibration.applied:
        _rate(request, journal, f"recalibrated{name}", made.model)
    return replace(made, recalibration=recalibration)


def _tuned(
    request: Request, made: Compressed, config: tune.FinetuneConfig, name: str, journal: Journal
) -> Compressed:
    assert request.data is not None
    config, plan = _with_norms(config, made), made.cut.plan
    if config.checkpoint and made.cut.outcome:
        save_plan(plan, searched(config.checkpoint))
    graph.balance_(made.model, plan)
    with journal.timed("finetune"):
        result = tuned(
            made.model, request.model, plan, request.data, config, device=request.device,
            progress=request.progress, name=f"fine-tuning{name}",
            origin={"fit": request.how, "images": request.fit.images, "round": name,
                    "reconstruct": bool(request.fit.reconstruct),
                    "calibration": str(request.fit.calibration)},
        )  # fmt: skip
    _rate(request, journal, f"finetuned{name}", made.model)
    if result.interrupted:
        done = f"{result.epochs_done:.2f} of {config.epochs}"
        journal.remarks.append(
            f"fine-tuning{name} interrupted after {done} epochs; --resume goes on"
        )
    if result.stopped:
        journal.remarks.append(f"fine-tuning{name} stopped early: {result.stopped}")
    if result.best_epoch == 0 and len(result.history) > 1:
        journal.remarks.append(_kept_start(result, name))
    return replace(made, tuned=result)


def tune_original(
    request: Request, made: Compressed, journal: Journal
) -> tune.FinetuneResult | None:
    """Tune the original alike, where there is something for it to learn."""
    data = request.data
    if not request.tuning.control or data is None or made.tuned is None or made.ended_early:
        return None
    config = replace(_with_norms(request.tuning, made), lr=made.tuned.lr)
    if not (config.label_weight and tune.uses_labels(data, tune.tensors(made.output)[0])):
        journal.remarks.append(
            "no control: no labels are tuned to, so that the original has nothing to learn"
        )
        return None
    with journal.timed("tune the original"):
        model, result = control(
            request.model, data, config, device=request.device, progress=request.progress
        )
    _rate(request, journal, CONTROL, model)
    if result.interrupted:
        journal.remarks.append("tuning the original interrupted; --resume goes on")
    if result.stopped:
        journal.remarks.append(f"tuning the original stopped early: {result.stopped}")
    known, new = 100 * result.history[0]["score"], journal.quality["original"].get("top1")
    remembers = new is not None and data.test is not None and known > new + REMEMBERED
    if made.tuned.best_epoch == 0 and remembers:
        journal.remarks.append(
            f"the original knows the held-out images ({known:.1f} % right, {new:.1f} % of the test "
            "split), which favours a start that is close to it"
        )
    return result


def _kept_start(result: tune.FinetuneResult, name: str) -> str:
    """What is said where no epoch was better than what the tuning began with."""
    before, *later = (one["score"] for one in result.history)
    return (
        f"fine-tuning{name} kept its start: held out it scores {before:.4g}, and the best of "
        f"{len(later)} epochs at a learning rate of up to {result.lr:.2g} {max(later):.4g}. Try a "
        "lower --lr; may_stay = false in a --recipe takes the best epoch all the same"
    )


def _forget(tuning: tune.FinetuneConfig, rounds: int) -> None:
    """Remove what an earlier run left of later tunings, which this one is not to resume."""
    if tuning.resume or not tuning.epochs:
        return
    later = [of_round(tuning, number, rounds).checkpoint for number in range(2, rounds + 1)]
    for path in (*later, control_checkpoint(tuning)):
        if path is not None and path.is_file():
            path.unlink()


def _with_norms(config: tune.FinetuneConfig, made: Compressed) -> tune.FinetuneConfig:
    """Batch norms keep their statistics in tuning where recalibration found no better ones."""
    if config.batch_norm != "auto" or made.recalibration is None:
        return config
    return replace(config, batch_norm="batch" if made.recalibration.applied else "fixed")


def _rate_original(request: Request, journal: Journal) -> None:
    """Before any long work: what is wrong with the data or the user's own measure shows here."""
    if "original" not in journal.quality:
        _rate(request, journal, "original", request.model)


def _rate(request: Request, journal: Journal, step: str, model: nn.Module) -> None:
    """Measure what a model is worth."""
    request.tell(f"evaluate {step}")
    with journal.timed("evaluate"):
        journal.quality[step] = request.worth(model)


def _rated(
    request: Request, model: nn.Module, original: Reference, journal: Journal
) -> dict[str, Any]:
    with journal.timed("evaluate"):
        return request.worth(model, original)
