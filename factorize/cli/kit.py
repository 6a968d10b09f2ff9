"""``factorize kit``: what another device is asked to time."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from factorize.cli import options
from factorize.cli.interruption import interruptible
from factorize.cli.loading import load
from factorize.cli.numbers import option_number
from factorize.cli.parse import usage
from factorize.data.synthetic import MadeUp
from factorize.measure import load_times
from factorize.plan import Budget
from factorize.report import Bars, Console, log_to
from factorize.run.kit import write_kit
from factorize.system.imports import import_plugins

HELP = """Write what a device far away has to time, so that a model can be made fast for it.

- `factorize kit resnet.onnx --speedup 2 --out kit/`, then copy the folder to the device, which
  needs Python 3.8 or later, numpy and onnxruntime

- there: `python kit/bench.py --threads 4 --minutes 20` writes times.json to the folder it is run in

- `factorize resnet.onnx --speedup 2 --times times.json`: the search for that device

- `factorize kit resnet.onnx --speedup 2 --times times.json --out kit2/`: its three best nets, to be
  timed there too; give both files by `--times` then

The kit has none of the model's weights: random numbers stand for them. It has the shapes and names
of its layers.
"""

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
_out, _err = Console(), Console(stderr=True)


@app.command(help=HELP, no_args_is_help=True)
@interruptible
def kit(
    context: typer.Context,
    model: options.Model,
    out: Annotated[Path, typer.Option(
        metavar="DIR", help="A new folder for the kit.", show_default=False)],
    speedup: Annotated[float, typer.Option(
        parser=option_number, metavar="X",
        help="The speedup that you will ask for: chains that it likely needs are timed first.",
    )] = 2.0,
    method: options.Method = None,
    plugin: options.Plugin = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    batch: options.Batch = 1,
    times: Annotated[list[Path] | None, typer.Option(
        "--times", metavar="FILE",
        help="Of a kit that was timed: a kit of the best nets by these times.")] = None,
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
    device: options.Device = "auto",
    seed: options.Seed = 0,
) -> None:  # fmt: skip
    """Write a kit; the help text is ``HELP``."""
    import_plugins(plugin or ())
    with usage():
        Budget(speedup=speedup)
    recorded = load_times(*times) if times else None
    work = load(context.params, reading=recorded is not None)
    loaded, images = work.model, work.images
    if work.source is None:
        images = MadeUp(work.preprocessing, batch_size)
    with Bars(_err) as bars, log_to(_err, logging.INFO):
        counts = write_kit(
            loaded.model, work.sample, out, speedup=speedup, method=method or "auto",
            include=include or (), exclude=exclude or (), batch=batch, times=recorded, data=images,
            device=device, seed=seed, name=loaded.arch, progress=bars.update,
        )  # fmt: skip
    held = ", ".join(
        f"{count} {what if count > 1 else what[:-1]}" for what, count in counts.items() if count
    )
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
    bench = out / "bench.py"
    where = f"written to {out}{os.sep} ({size:.1f} MB)"
    _out.print(Text(f"{loaded.arch}: {held}, random weights, {where}"))
    _out.print(Text(f"on the device: python {bench} --threads N --minutes 20, then --times"))
