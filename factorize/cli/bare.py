"""Options whose value may be left out, which typer has none of."""

from __future__ import annotations

from typing import Any, Literal

import typer
from typer.core import TyperCommand

LEFT_OUT = {"--int8": ("auto", "all")}
"""What stands for a value left out, and those that may be given."""


class Completed(TyperCommand):
    """A command that gives such options their value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: D102
        return super().parse_args(ctx, list(map(_completed, args, [*args[1:], ""])))


def _completed(arg: str, after: str) -> str:
    default, *values = LEFT_OUT.get(arg, ("",))
    return f"{arg}={default}" if default and after not in values else arg


def int8_of(text: str | None) -> bool | Literal["all"]:
    """What ``--int8`` says."""
    if text in (None, "auto"):
        return text is not None
    if text != "all":
        raise typer.BadParameter(f"--int8: must be by itself or followed by all, got {text}.")
    return "all"
