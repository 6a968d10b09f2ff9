"""The terminal, to which text of others must not give orders."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment


class Console(rich.console.Console):
    """Rich's console; what cannot be printed, such as escape codes in a layer's name, is a ``?``.

    Names of layers and files, and messages that quote them, come from files of others.
    """

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Every text that is printed comes by here; rich's own control codes are marked as such."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(printable(text), style)


def printable(text: str) -> str:
    """The text with a ``?`` for each character, but for line ends, that cannot be printed."""
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else "?" for c in text)
