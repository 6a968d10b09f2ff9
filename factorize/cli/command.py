"""The command line: arguments in, `compress`, tables out."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.text import Text

from factorize.cli import given_plan, options
from factorize.cli.bare import Completed, int8_of
from factorize.cli.ending import ended
from factorize.cli.exit_codes import Ending
from factorize.cli.help import HELP
from factorize.cli.interruption import (
    RunInterrupted,
    goes_on,
    going_on,
    interruptible,
    what_is_left,
    written,
)
from factorize.cli.kit import app as kit_app
from factorize.cli.loading import load
from factorize.cli.parse import (
    budget_of,
    check_wish,
    default_out,
    macs_of,
    names_of,
    pick_of,
    rank_of,
    sizes_of,
    sweep_of,
    usage,
)
from factorize.cli.run_file import as_run_file, as_words
from factorize.cli.targets import also_of, recorded_of
from factorize.data.synthetic import MadeUp, is_made_up_like
from factorize.errors import DataError
from factorize.export import OnnxConfig
from factorize.fit import FitConfig
from factorize.measure import Target
from factorize.report import (
    Bars,
    Console,
    compare_reports,
    forecast,
    log_to,
    plan_table,
    show,
    verdict,
)
from factorize.run.checks import check_not_empty, check_recorded, resolve_device
from factorize.run.compress import Result, compress
from factorize.run.files import outputs_of
from factorize.run.make_plan import make_plan, search_plan
from factorize.run.rounds import Selection, Wish
from factorize.search import SearchConfig
from factorize.system import processes
from factorize.system.imports import import_function, import_plugins
from factorize.system.signals import terminable
from factorize.tune import read_recipe, with_recipe

app = typer.Typer(rich_markup_mode="markdown", context_settings={"help_option_names": []})
compare_app = typer.Typer(add_completion=False)
_out, _err = (Console(stderr=err, quiet=not processes.is_main()) for err in (False, True))


@app.command(help=HELP, cls=Completed)
@interruptible
def run(
    context: typer.Context,
    model: options.Model,
    rank: options.Rank = None,
    energy: options.Energy = None,
    lossless: options.Lossless = False,
    method: options.Method = None,
    plan: options.Plan = None,
    plugin: options.Plugin = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    allow_costlier: options.AllowCostlier = False,
    int8: options.Int8 = None,
    dry_run: options.DryRun = False,
    speedup: options.Speedup = None,
    macs: options.Macs = None,
    params: options.Params = None,
    max_drop: options.MaxDrop = None,
    sensitivity: options.Sensitivity = "error",
    sweep: options.Sweep = None,
    pick: options.Pick = None,
    target: options.RuntimeTarget = None,
    also: options.Also = None,
    provider_option: options.ProviderOption = None,
    times: options.Times = None,
    arch: options.Arch = None,
    arch_args: options.ArchArgs = None,
    weights: options.Weights = None,
    key: options.Key = None,
    trust_pickle: options.TrustPickle = False,
    input_shape: options.InputShape = None,
    data: options.Data = None,
    mean: options.Mean = None,
    std: options.Std = None,
    scale: options.Scale = None,
    resize: options.Resize = None,
    crop: options.Crop = None,
    batch_size: options.BatchSize = 128,
    workers: options.Workers = None,
    skip_bad: options.SkipBad = 0,
    evaluate: options.Evaluate = None,
    outputs: options.Outputs = None,
    loss: options.Loss = None,
    score: options.Score = None,
    fit: options.Fit = None,
    calibration_images: options.CalibrationImages = 1000,
    calibration_memory: options.CalibrationMemory = 2.0,
    save_calibration: options.SaveCalibration = None,
    calibration: options.Calibration = None,
    reconstruct: options.Reconstruct = None,
    finetune: options.Finetune = None,
    lr: options.Lr = None,
    recipe: options.Recipe = None,
    stages: options.Stages = 1,
    tensorboard: options.TensorBoard = None,
    tracker: options.Tracker = None,
    resume: options.Resume = False,
    out: options.Out = None,
    force: options.Force = False,
    opset: options.Opset = None,
    input_names: options.InputNames = None,
    output_names: options.OutputNames = None,
    onnx_float16: options.OnnxFloat16 = False,
    openvino_xml: options.OpenVinoXml = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
    batch: options.Batch = 1,
    dtype: options.Dtype = "float32",
    compile_: options.Compile = False,
    refresh: options.Refresh = False,
    seed: options.Seed = 0,
    verbose: options.Verbose = False,
    config: options.Config = None,
    help_: options.Help = False,
    help_all: options.HelpAll = False,
    version: options.Version = False,
) -> None:
    """Compress a model; the help text is ``HELP``."""
    level = logging.DEBUG if verbose else logging.INFO
    if threads:
        torch.set_num_threads(threads)
    resolve_device(device)
    import_plugins(plugin or ())
    given = given_plan.read(plan) if plan else None
    with usage():
        share, shares = macs_of(macs)
        budget = budget_of(speedup=speedup, macs=share, params=params, max_drop=max_drop)
        search = SearchConfig(sensitivity, sweep_of(sweep), shares, pick_of(pick))  # type: ignore[arg-type]
    searching = budget is not None or bool(search.points)
    check_wish(
        rank=rank, energy=energy, lossless=lossless, planned=given is not None,
        searching=searching, sweeping=bool(search.points), pick=pick, sensitivity=sensitivity,
    )  # fmt: skip
    rank = "lossless" if lossless else rank
    timed: Target | None = recorded_of(times, target, batch, dtype, compile_)
    given_by = target or also or provider_option or batch != 1 or dtype != "float32" or compile_
    others = also_of(also, threads, batch, dtype)
    if timed is not None:
        check_recorded(timed, budget, search, others)
    elif given_by or searching:
        timed = Target(
            target or "onnxruntime", threads, batch, dtype, compile_,
            options=tuple(provider_option or ()),
        )  # fmt: skip
    integers = int8_of(int8)
    layers = {"method": method, "include": include or (), "exclude": exclude or ()}
    ranks = {"rank": rank_of(rank), "energy": energy, "allow_costlier": allow_costlier}
    Wish(given, budget, search if searching else None, Selection(**layers, **ranks)).check()

    metric, own_loss, own_score = (
        import_function(one, error=DataError) if one else None for one in (evaluate, loss, score)
    )
    work = load(context.params, reading=searching or not dry_run)
    loaded, images, sample, notes = work.model, work.images, work.sample, work.notes
    if model == work.source == "digits" and finetune is None and recipe is None:
        finetune = 1  # the example shows the whole pipeline
    described = f"{loaded.arch}, input {sizes_of(sample)}"

    fitting = FitConfig(
        fit, images=calibration_images, memory=calibration_memory * 1e9,  # type: ignore[arg-type]
        calibration=calibration, save_calibration=save_calibration, reconstruct=reconstruct,
    )  # fmt: skip
    unseen = work.source is None and fitting.wants_images and not lossless
    if unseen and is_made_up_like(sample):
        images = MadeUp(work.preprocessing, batch_size)
    if dry_run:
        with Bars(_err) as bars, log_to(_err, level), given_plan.named(plan), going_on(searching):
            if searching:
                found = search_plan(
                    loaded.model, sample, Wish(None, budget, search, Selection(**layers)),
                    target=timed, also=others, data=images, fit=fitting, device=device, seed=seed,
                    refresh=refresh, int8=integers, progress=bars.update,
                )  # fmt: skip
                planned, layer_times = found.outcome.plan, found.times
                notes = (*notes, *found.outcome.notes, *found.notes)
            else:
                found, layer_times = None, {}
                planned = make_plan(
                    loaded.model, sample, edited=given, seed=seed, progress=bars.update, **layers,
                    **ranks,
                )  # fmt: skip
        _out.print(Text(described, style="bold"))
        of = "outputs" if searching and images else "weights"
        speed = found.outcome.report.measured if found is not None else None
        _out.print(plan_table(planned, layer_times, speed, error_of=of))
        if found is not None:
            _out.print(Text(forecast(found.outcome.report), style="bold"), soft_wrap=True)
        for note in notes:
            _out.print(Text(f"note: {note}", style="yellow"))
        check_not_empty(planned)
        return

    tuning = with_recipe(
        read_recipe(recipe) if recipe else {}, epochs=finetune, lr=lr, seed=seed or None,
        resume=resume, tensorboard=tensorboard, tracker=tracker,
    )  # fmt: skip
    if (lr is not None or recipe or tracker) and not tuning.epochs:
        raise DataError(
            "--lr, --recipe, --tracker: are for a tuning, got 0 epochs. Give --finetune EPOCHS."
        )
    folder = out or default_out(model)
    before = written(folder)
    try:
        with Bars(_err) as bars, log_to(_err, level), given_plan.named(plan):
            result = compress(
                loaded.model, sample, plan=given, budget=budget, target=timed, also=others,
                search=search if searching else None,
                data=images, outputs=outputs, loss=own_loss, score=own_score, evaluate=metric,
                fit=fitting, finetune=tuning, stages=stages, int8=integers,
                onnx=OnnxConfig(opset, names_of(input_names), names_of(output_names), onnx_float16),
                openvino_xml=openvino_xml, refresh=refresh,
                out=folder, force=force, device=device, threads=threads,
                command=shlex.join(as_words(context) if config else ["factorize", *sys.argv[1:]]),
                run_file=as_run_file(context), seed=seed, name=loaded.arch,
                notes=notes, progress=bars.update, **layers, **ranks,
            )  # fmt: skip
        _finish(result, folder, described, timed=bool(sweep or (budget and budget.timed)))
    except KeyboardInterrupt as error:
        left = what_is_left(folder, before, resume, save_calibration, searching)
        raise RunInterrupted(left, error) from error


@compare_app.command()
@interruptible
def compare(
    reports: Annotated[list[Path], typer.Argument(help="Files report.json, or folders with one.")],
) -> None:
    """Show runs side by side: factorize compare a/report.json b/report.json."""
    _out.print(compare_reports(reports))


def main() -> None:
    """Run the command; an error is one line. How it may end is in `exit_codes`."""
    other = {"compare": compare_app, "kit": kit_app}.get(sys.argv[1] if sys.argv[1:] else "")
    command = partial(
        typer.main.get_command(other or app),
        prog_name=f"factorize {sys.argv[1]}" if other else "factorize",
    )
    alone = len(sys.argv) == 1 and "_FACTORIZE_COMPLETE" not in os.environ
    arguments = ["--help"] if alone else sys.argv[1 + bool(other) :]
    with terminable():  # until what there is to tell is told
        code = ended(command, arguments, _err)
    sys.exit(Ending.REFUSED if alone else code)


def _finish(result: Result, folder: Path, described: str, *, timed: bool) -> None:
    report = result.report
    show(report, _out)
    written = [name for name in outputs_of(result.model) if (folder / name).exists()]
    line = f"\n{described}: written to {folder}{os.sep}: {', '.join(written)}"
    _out.print(line, markup=False, highlight=False, soft_wrap=True)
    if any(one and one["interrupted"] for one in (report.finetuning, report.control)):
        raise RunInterrupted(f"{goes_on(folder)}; the files are of the best epoch so far")
    if report.failures:
        raise typer.Exit(Ending.INCOMPLETE)
    if report.finetuning and report.finetuning["diverged"]:
        told = f"fine-tuning diverged: {report.finetuning['stopped']}. The best so far is kept."
        _err.print(Text(told, style="bold red"), soft_wrap=True)
        raise typer.Exit(Ending.UNREACHED)
    judged = verdict(report)
    if timed and judged and not (judged[1] and report.search and report.search.reached):
        raise typer.Exit(Ending.UNREACHED)
