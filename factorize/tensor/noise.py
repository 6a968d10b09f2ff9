"""Rounding that the values inside a chain will go through: fits then keep the terms of a sum small.

The terms that a chain's last stage adds up may be much larger than their sum, and cancel. In exact
numbers that costs nothing. Values of few bits have an error in proportion to themselves, and what
is left of the sum is mostly that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

INT8 = 2e-3
"""Mean squared error, as a share of the mean square, that fits for 8-bit values reckon with.

A channel that uses all of its 8 bits has about 1e-4 (its largest value is five times its root mean
square). More loses less (`experiments/int8/noise.md`): a chain rounds twice, and what it computes
from a rounded input is inexact too.
"""

_current: ContextVar[float] = ContextVar("noise", default=0.0)


@contextmanager
def with_noise(share: float) -> Iterator[None]:
    """Within it, fits of this thread and of `in_threads` reckon with so much."""
    token = _current.set(share)
    try:
        yield
    finally:
        _current.reset(token)


def noise() -> float:
    """What a fit reckons with; 0 where all is exact."""
    return _current.get()
