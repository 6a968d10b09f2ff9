"""The texts of ``--help``, which fits a screen, and of ``--help-all``."""

from __future__ import annotations

from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from factorize import methods
from factorize.cli.exit_codes import MEANINGS
from factorize.report import Console

_METHODS = "\n\n".join(f"- `{name}`: {methods.get(name).summary}" for name in methods.names())

_CODES = "\n\n".join(f"- `{code.value}`: {text}" for code, text in MEANINGS.items())

HELP = f"""Make a trained convolutional network smaller and faster.

Each convolution is replaced by a chain of cheaper plain convolutions, fitted to what the layer
puts out for your images (a few hundred, no labels); the result is tuned on them, exported to
ONNX, and reported: accuracy against measured speedup.

**Examples**

- `factorize digits --rank 8`: the built-in example, start to end

- `factorize resnet.pt --rank 8`: fitted to made-up images, where there are none

- `factorize resnet.pt --speedup 2 --data imagenet/`: twice as fast, as accurate as can be

- `factorize detector.onnx --macs 0.5 --data photos/`: an ONNX file, which stays one

- `factorize kit resnet.onnx --speedup 2 --out kit/`: for a device far away, see its `--help`

- `factorize resnet.pt --sweep auto --data imagenet/`: the accuracy-speedup curve

- `factorize resnet.pt --rank 0.25 --dry-run`: what would be done to which layer

- `factorize resnet.pt --rank 0.25 --data imagenet/`: fitted to the outputs, in sequence

- `factorize resnet.pt --energy 0.9 --data imagenet/ --finetune 2`: tuned and tested

- `factorize net.pth --arch net.py:build --input-shape 3,32,32 --plan plan.json`: an edited plan

**Methods**

{_METHODS}

**With a budget** (`--speedup`, `--macs`, `--params`, `--max-drop`) methods and ranks are searched,
layer by layer; with one of time, no layer is replaced that is not measured faster.
`factorize compare a/report.json b/report.json` shows runs side by side.

**By rule** the first layer (up to 4 input channels), 1x1 convolutions and linear layers stay as
they are, unless `--include` names them; a layer whose chain would not save MACs stays too. The
reason is in the table.

**Exit codes**

{_CODES}
"""

EXAMPLES = {
    "factorize digits --rank 8": "the built-in example",
    "factorize resnet.pt --speedup 2 --data imagenet/": "twice as fast",
    "factorize net.onnx --macs 0.5 --data photos/": "an ONNX file stays one",
    "factorize resnet.pt --sweep auto --data imagenet/": "accuracy against time",
}

MAIN = {
    "--data": "images, without labels too; none: some are made up",
    "--speedup": "so many times as fast, measured here",
    "--macs": "share of the MACs to keep; several: a curve",
    "--max-drop": "as fast as this loss of top-1 allows",
    "--rank": "by rule instead: an integer, a share, or vbmf",
    "--method": "which chains; default with a budget: the best of all",
    "--finetune": "distil from the original",
    "--int8": "model.onnx computes in 8-bit integers",
    "--target": "runtime that time is measured on",
    "--out": "folder for all files",
    "--dry-run": "show what would be done, write nothing",
    "--config": "the options as a file, such as a run's run.toml",
    "--help-all": "all options, methods and exit codes",
}
"""What most runs need, each in less than a line."""


def show_help(context: typer.Context) -> None:
    """Print what a new user needs, within 80 columns and one screen."""
    options = {name: one for one in context.command.params for name in one.opts}
    console = Console(highlight=False)
    console.print(Text("Usage: factorize MODEL [OPTIONS]\n", style="bold"))
    console.print(Text(
        "Make a trained convolutional network smaller and faster. MODEL is a checkpoint, a "
        "pickled module, an ONNX file, an exported program (.pt2), torchvision:NAME, timm:NAME, "
        "hf:ORG/NAME, or digits.\n"
    ))  # fmt: skip
    _print_table(console, EXAMPLES.items())
    rows = ((f"{name} {_value_of(options[name])}".strip(), text) for name, text in MAIN.items())
    console.print()
    _print_table(console, rows)
    panels = dict.fromkeys(
        panel for one in context.command.params if (panel := getattr(one, "rich_help_panel", None))
    )
    console.print(Text(f"\nAll options: factorize --help-all. Panels: {', '.join(panels)}."))
    console.print(Text("Runs side by side: factorize compare a/report.json b/report.json"))
    console.print(Text("For another device: factorize kit MODEL --speedup 2 --out kit/"))


def _value_of(option: Any) -> str:
    return "" if getattr(option, "is_flag", False) else option.metavar or "TEXT"


def _print_table(console: Console, rows: Any) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(no_wrap=True, style="cyan")
    table.add_column()
    for name, text in rows:
        table.add_row(Text(f"  {name}"), Text(text))
    console.print(table)
