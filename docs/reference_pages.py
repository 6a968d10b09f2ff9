"""The reference: public names by where they are defined, and the options of the command line."""

from __future__ import annotations

import re

import typer

import factorize
from factorize.cli.command import app


def resolved(markdown: str) -> str:
    """``::: factorize.NAME`` is where the name is defined, under its public name."""

    def definition(found: re.Match[str]) -> str:
        name = found[1]
        value = getattr(factorize, name)
        value = getattr(value, "__wrapped__", value)
        place = f"{value.__module__}.{value.__qualname__}"
        return (
            f"::: {place}\n    options:\n      heading: factorize.{name}\n      toc_label: {name}"
        )

    return re.sub(r"^::: factorize\.(\w+)$", definition, markdown, flags=re.MULTILINE)


def pages() -> dict[str, str]:
    """The command line's page."""
    return {"command-line.md": command_line()}


def command_line() -> str:
    """All options, in the panels of ``--help``."""
    command = typer.main.get_command(app)
    panels: dict[str, list[str]] = {}
    for parameter in command.params:
        panel = getattr(parameter, "rich_help_panel", None) or "The model"
        name = (parameter.metavar or parameter.name or "").upper()
        if parameter.param_type_name == "option":
            value = "" if getattr(parameter, "is_flag", False) else f" {name}"
            name = f"{max(parameter.opts, key=len)}{value}"
        text = (getattr(parameter, "help", None) or "").replace("|", "\\|")
        default = parameter.default
        if not callable(default) and default not in (None, False, "", ()):
            text += f" Default: {default}."
        panels.setdefault(panel, []).append(f"| `{name}` | {text.strip()} |")
    parts = ["# Command line", "`factorize MODEL [OPTIONS]`, or `python -m factorize`. "
             "`factorize compare a/report.json b/report.json` shows runs side by side. "
             "Exit codes are with the [files](files.md#exit-codes)."]  # fmt: skip
    for panel, rows in panels.items():
        parts += [f"## {panel}", "\n".join(["| | |", "|---|---|", *rows])]
    return "\n\n".join(parts) + "\n"
