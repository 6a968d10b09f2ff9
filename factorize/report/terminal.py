"""The terminal, to which text of others must not give orders."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import rich.console
from rich.segment import Segment
from rich.text import Text


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


@contextmanager
def log_to(console: Console, level: int = logging.INFO) -> Iterator[None]:
    """Print what the library logs of its work, a line each, above bars that may be there."""

    class Printing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.print(Text(record.getMessage()), soft_wrap=True)

    logger, handler = logging.getLogger("factorize"), Printing()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False  # a root logger that the user's own code has set up would say it again
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
