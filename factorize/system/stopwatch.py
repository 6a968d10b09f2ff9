"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds by step; time within an inner step does not count for the one around it.

    Attributes
    ----------
    seconds
        By step, in the order in which they first began.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []  # seconds that steps within the open ones took

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add to the seconds of a step, also where it ends by an exception."""
        self.seconds.setdefault(step, 0.0)
        self._inner.append(0.0)
        start = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - start
            self.seconds[step] += took - self._inner.pop()
            if self._inner:
                self._inner[-1] += took
