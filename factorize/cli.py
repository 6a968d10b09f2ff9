"""The command line: arguments in, `api.compress`, tables out."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.text import Text

from factorize import methods
from factorize.api import CHECKPOINT, OUTPUTS, Result, check_not_empty, compress, resolve_device
from factorize.arguments import (
    default_out,
    example,
    json_object,
    preprocessing_of,
    rank_of,
    shape_of,
)
from factorize.errors import DataError, FactorizeError, RankError
from factorize.fit import FitConfig
from factorize.io.data import load_data
from factorize.io.imports import import_function
from factorize.io.models import load_model
from factorize.plan import load_plan
from factorize.report import Bars, plan_table, show
from factorize.stages import make_plan
from factorize.tune import FinetuneConfig

_METHODS = "\n\n".join(f"- `{name}`: {methods.get(name).summary}" for name in methods.names())

_HELP = f"""Make a trained convolutional network smaller and faster.

Each convolution is replaced by a chain of cheaper plain convolutions, fitted to what the layer
puts out for your images (a few hundred, no labels); the result is tuned on them, exported to
ONNX, and reported: accuracy against measured speedup.

**Examples**

- `factorize digits --rank 8`: the built-in example, start to end

- `factorize resnet.pt --rank 0.25 --dry-run`: what would be done to which layer

- `factorize resnet.pt --rank 0.25 --data imagenet/`: fitted to the outputs, in sequence

- `factorize resnet.pt --energy 0.9 --data imagenet/ --finetune 2`: tuned and tested

- `factorize net.pth --arch net.py:build --input-shape 3,32,32 --plan plan.json`: an edited plan

**Methods**

{_METHODS}

**By rule** the first layer (up to 4 input channels) and 1x1 convolutions stay as they are, unless
`--include` names them; a layer whose chain would not save MACs stays too. The reason is in the
table.
"""

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
_out, _err = Console(), Console(stderr=True)

_MODEL, _CHOICE, _DATA, _FIT, _TUNING, _RUN = (
    "The model", "What to do to it", "Images", "The fit", "Fine-tuning", "The run",
)  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        _out.print(f"factorize {version('factorize')}", highlight=False)
        raise typer.Exit


@app.command(help=_HELP, no_args_is_help=True)
def run(
    model: Annotated[str, typer.Argument(
        help="A checkpoint (.pt .pth .th .safetensors), a pickled module, torchvision:NAME, or "
        "digits.", show_default=False)],
    rank: Annotated[str | None, typer.Option(
        help="An integer for all layers (clamped to each layer's maximum), a share of the maximum "
        "such as 0.25, or vbmf.", rich_help_panel=_CHOICE)] = None,
    energy: Annotated[float | None, typer.Option(
        help="Share of each kernel's squared norm to keep, such as 0.95; instead of --rank.",
        rich_help_panel=_CHOICE)] = None,
    method: Annotated[str, typer.Option(
        help=" | ".join(methods.names()), metavar="NAME", rich_help_panel=_CHOICE)] = "spatial_svd",
    plan: Annotated[Path | None, typer.Option(
        help="A plan.json of an earlier run, perhaps edited, instead of --rank and --method.",
        rich_help_panel=_CHOICE)] = None,
    include: Annotated[list[str] | None, typer.Option(
        metavar="GLOB", help="Only layers whose name matches; repeatable. Overrides the rules for "
        "first layers and 1x1 convolutions.", rich_help_panel=_CHOICE)] = None,
    exclude: Annotated[list[str] | None, typer.Option(
        metavar="GLOB", help="Not the layers whose name matches; repeatable.",
        rich_help_panel=_CHOICE)] = None,
    allow_costlier: Annotated[bool, typer.Option(
        "--allow-costlier", help="Replace a layer even if that saves no MACs.",
        rich_help_panel=_CHOICE)] = False,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="Show the table of layers and write nothing.",
        rich_help_panel=_CHOICE)] = False,
    arch: Annotated[str | None, typer.Option(
        metavar="REF", help="What a state dict belongs to, where it is not recognised: "
        "torchvision:NAME, package.module:function or path/file.py:function.",
        rich_help_panel=_MODEL)] = None,
    arch_args: Annotated[str | None, typer.Option(
        metavar="JSON", help='Its keyword arguments, such as \'{"num_classes": 10}\'.',
        rich_help_panel=_MODEL)] = None,
    weights: Annotated[str | None, typer.Option(
        help="With torchvision:NAME, trained weights to download, such as DEFAULT.",
        rich_help_panel=_MODEL)] = None,
    trust_pickle: Annotated[bool, typer.Option(
        "--trust-pickle", help="Load a pickle with classes from anywhere. It can run any code.",
        rich_help_panel=_MODEL)] = False,
    input_shape: Annotated[str | None, typer.Option(
        metavar="C,H,W", help="Shape of one input; known for torchvision's classifiers and "
        "taken from --data.", rich_help_panel=_MODEL)] = None,
    data: Annotated[str | None, typer.Option(
        metavar="SOURCE", help="A folder in ImageFolder layout (train/, val/ or test/), a folder "
        "of images, .npz with images and labels or a folder of them, digits, or "
        "module:function that returns loaders.", rich_help_panel=_DATA)] = None,
    mean: Annotated[str | None, typer.Option(
        metavar="A,B,C", help="Subtracted per channel from pixels in 0..1.",
        rich_help_panel=_DATA)] = None,
    std: Annotated[str | None, typer.Option(
        metavar="A,B,C", help="Divided by, per channel.", rich_help_panel=_DATA)] = None,
    resize: Annotated[int | None, typer.Option(
        help="Shorter side in pixels.", rich_help_panel=_DATA)] = None,
    crop: Annotated[int | None, typer.Option(
        help="Side of the central crop in pixels.", rich_help_panel=_DATA)] = None,
    batch_size: Annotated[int, typer.Option(
        min=1, help="Images per batch.", rich_help_panel=_DATA)] = 128,
    evaluate: Annotated[str | None, typer.Option(
        metavar="REF", help="Your own measure, module:function or path/file.py:function: "
        "model -> number or {name: number}, for the report. Set higher_is_better = False on it "
        "where that is so.",
        rich_help_panel=_DATA)] = None,
    fit: Annotated[str | None, typer.Option(
        metavar="HOW", help="What the chains are fitted to: weights | outputs (of each layer) | "
        "sequential (outputs, given the input from the layers fitted before). Default: sequential "
        "with --data, weights without.", rich_help_panel=_FIT)] = None,
    calibration_images: Annotated[int, typer.Option(
        min=2, metavar="N", help="Training images to fit to; no labels. Every fifth is held out.",
        rich_help_panel=_FIT)] = 1000,
    calibration_memory: Annotated[float, typer.Option(
        metavar="GB", help="For moments and activations; where they need more, there are more "
        "passes.", rich_help_panel=_FIT)] = 2.0,
    save_calibration: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Write the moments of the layers' inputs (.safetensors).",
        rich_help_panel=_FIT)] = None,
    calibration: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Fit to the moments in such a file: no images are needed.",
        rich_help_panel=_FIT)] = None,
    reconstruct: Annotated[bool, typer.Option(
        "--reconstruct", help="Then tune the factors of each block together on its output in the "
        "original; takes minutes.", rich_help_panel=_FIT)] = False,
    finetune: Annotated[int | None, typer.Option(
        metavar="EPOCHS", min=0, help="Epochs of distillation from the original; labels are used "
        "where there are any. Ctrl-C keeps the best so far.", rich_help_panel=_TUNING)] = None,
    lr: Annotated[float | None, typer.Option(
        help="Peak learning rate.", rich_help_panel=_TUNING)] = None,
    resume: Annotated[bool, typer.Option(
        "--resume", help="Go on with an interrupted fine-tuning in --out.",
        rich_help_panel=_TUNING)] = False,
    out: Annotated[Path | None, typer.Option(
        metavar="DIR", help="Folder for all files. Default: NAME-factorized beside the model.",
        rich_help_panel=_RUN)] = None,
    force: Annotated[bool, typer.Option(
        "--force", help="Overwrite the files of an earlier run.", rich_help_panel=_RUN)] = False,
    device: Annotated[str, typer.Option(
        help="auto, cpu or cuda.", rich_help_panel=_RUN)] = "auto",
    threads: Annotated[int | None, typer.Option(
        min=1, help="CPU threads; default: all cores.", rich_help_panel=_RUN)] = None,
    seed: Annotated[int, typer.Option(min=0, rich_help_panel=_RUN)] = 0,
    version: Annotated[bool, typer.Option(
        "--version", callback=_version, is_eager=True, help="Show the version.",
        rich_help_panel=_RUN)] = False,
) -> None:  # fmt: skip
    """Compress a model; the help text is ``_HELP``."""
    if threads:
        torch.set_num_threads(threads)
    resolve_device(device)
    given = load_plan(plan) if plan else None
    if given is None and rank is None and energy is None:
        raise RankError("one of --rank, --energy and --plan is needed, for example --rank 0.25.")
    choice = {
        "method": method, "rank": rank_of(rank), "energy": energy, "include": include or (),
        "exclude": exclude or (), "allow_costlier": allow_costlier,
    }  # fmt: skip

    if model == "digits":  # the example brings its data, and shows the whole pipeline
        data = data or "digits"
        finetune = 1 if finetune is None and not dry_run else finetune
    loaded = load_model(
        model,
        arch=arch,
        arch_args=json_object(arch_args),
        weights=weights,
        trust_pickle=trust_pickle,
    )
    metric = import_function(evaluate, error=DataError) if evaluate else None
    shape = shape_of(input_shape) or loaded.input_shape
    preprocessing = preprocessing_of(loaded, mean, std, resize, crop)
    images = None
    if data is not None and (shape is None or not dry_run):
        images = load_data(
            data, preprocessing=preprocessing, input_shape=shape, batch_size=batch_size, seed=seed
        )
    sample = example(loaded, shape, images, seed)
    size = "x".join(map(str, sample.shape[1:]))
    _out.print(Text.assemble((loaded.arch, "bold"), f", input {size}"))

    if dry_run:
        with Bars(_err) as bars:
            planned = make_plan(
                loaded.model, sample, edited=given, seed=seed, progress=bars.update, **choice
            )
        _out.print(plan_table(planned))
        for note in loaded.notes:
            _out.print(Text(f"note: {note}", style="yellow"))
        check_not_empty(planned)
        return

    folder = out or default_out(model)
    fitting = FitConfig(
        fit, images=calibration_images, memory=calibration_memory * 1e9,  # type: ignore[arg-type]
        calibration=calibration, save_calibration=save_calibration, reconstruct=reconstruct,
    )  # fmt: skip
    config = FinetuneConfig(finetune or 0, seed=seed, resume=resume)
    if lr is not None:
        config = replace(config, lr=lr)
    try:
        with Bars(_err) as bars:
            result = compress(
                loaded.model, sample, plan=given, data=images, evaluate=metric, fit=fitting,
                finetune=config,
                out=folder, force=force, device=device, threads=threads, seed=seed,
                name=loaded.arch, notes=loaded.notes, progress=bars.update, **choice,
            )  # fmt: skip
    except KeyboardInterrupt as error:
        if (folder / CHECKPOINT).exists():
            raise _InterruptedError(f"{folder / CHECKPOINT} is kept, --resume goes on") from error
        saved = save_calibration is not None and save_calibration.exists()
        but = f" but {save_calibration}" if saved else ""
        raise _InterruptedError(f"nothing was written{but}") from error
    _finish(result, folder)


class _InterruptedError(Exception):
    """Ctrl-C, and what is left of the work."""


def main() -> None:
    """Run the command; an error is one line, and exit code 2."""
    command = typer.main.get_command(app)
    try:
        code = command(standalone_mode=False)
    except FactorizeError as error:
        code = _fail(str(error))
    except (_InterruptedError, typer.Abort) as error:
        _err.print(Text(f"interrupted: {error or 'nothing was written'}", style="bold red"))
        code = 130
    except Exception as error:
        if not hasattr(error, "format_message"):  # not the parser's own complaint: a bug of ours
            raise
        code = _fail(f"{error.format_message().rstrip('.')}. See --help.")  # type: ignore[attr-defined]
    sys.exit(code or 0)


def _fail(message: str) -> int:
    _err.print(f"error: {' '.join(message.split())}", style="bold red", markup=False,
               highlight=False, soft_wrap=True)  # fmt: skip
    return 2


def _finish(result: Result, folder: Path) -> None:
    report = result.report
    show(report, _out)
    written = [name for name in OUTPUTS if (folder / name).exists()]
    line = f"\nwritten to {folder}{os.sep}: {', '.join(written)}"
    _out.print(line, markup=False, highlight=False, soft_wrap=True)
    if report.failures:
        raise typer.Exit(1)
