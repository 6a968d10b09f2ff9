"""Ctrl-C and SIGTERM: held back while something must be done whole, and told apart."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM: like Ctrl-C, but there is no time to finish a report."""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block is done, so that it is done whole or not at all.

    What ends the process without Python's doing stays as it is.
    """
    held: list[tuple[Any, int, Any]] = []
    previous: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():  # Python tells that one alone
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(handler := signal.getsignal(number)):
                    previous[number] = handler
                    signal.signal(number, lambda n, frame: held.append((previous[n], n, frame)))
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    for handler, number, frame in held:
        handler(number, frame)


@contextmanager
def collected() -> Iterator[list[int]]:
    """Collect the numbers of SIGINT and SIGTERM in place of acting on them; a second one acts."""
    seen: list[int] = []
    previous: dict[int, Any] = {}

    def collect(number: int, frame: Any) -> None:
        if seen and callable(previous[number]):
            previous[number](number, frame)
        seen.append(number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(signal.getsignal(number)):
                previous[number] = signal.signal(number, collect)
    try:
        yield seen
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` in the block on SIGTERM, which would end the process on the spot."""

    def terminate(*_: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
