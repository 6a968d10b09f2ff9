"""Numbers as people write them: 2x, 50%."""

from __future__ import annotations

import typer


def number(text: str) -> float:
    """``0.5``, ``50%`` or ``2x``.

    Raises
    ------
    ValueError
        It is none of these.
    """
    text = text.strip()
    if text.endswith("%"):
        return float(text[:-1]) / 100
    return float(text[:-1] if text[-1:] in ("x", "X") else text)


def option_number(value: str | float) -> float:
    """The same for an option; a default is a number already."""
    try:
        return value if isinstance(value, float) else number(str(value))
    except ValueError:
        raise typer.BadParameter(f"{value!r} is not a number such as 0.5, 50% or 2x") from None
