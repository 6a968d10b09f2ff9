"""How much work a fit is worth: all there is, or less where fits are only compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import IntEnum


class Effort(IntEnum):
    """How far a fit goes.

    ``WHOLE`` stops where more brings next to nothing. ``QUICK`` takes moments of fewer patches and,
    where fits are swept, about a third of the time; its squared errors are 1.0 to 1.2 times as
    large on trained kernels, on average (`experiments/search`). Those of ``ROUGH`` are up to a few
    times as large.
    """

    ROUGH = 0
    QUICK = 1
    WHOLE = 2


_current: ContextVar[Effort] = ContextVar("effort", default=Effort.WHOLE)


@contextmanager
def with_effort(effort: Effort) -> Iterator[None]:
    """Within it, fits of this thread and of `in_threads` go so far, or less far as they did."""
    token = _current.set(min(effort, _current.get()))
    try:
        yield
    finally:
        _current.reset(token)


def effort() -> Effort:
    """How far a fit is to go."""
    return _current.get()
