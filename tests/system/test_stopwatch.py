"""Seconds by step: nothing is counted twice, nothing is lost."""

from contextlib import suppress

import pytest

from factorize.system import stopwatch
from factorize.system.stopwatch import Stopwatch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that is turned by hand."""
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    return now


def test_the_time_of_an_inner_step_is_its_own(clock: list[float]):
    watch = Stopwatch()
    with watch.timed("search"):
        clock[0] += 1
        with watch.timed("fit"):
            clock[0] += 10
            with watch.timed("judge"):
                clock[0] += 100
        clock[0] += 2
        with watch.timed("fit"):
            clock[0] += 20
    assert watch.seconds == {"search": 3, "fit": 30, "judge": 100}
    assert sum(watch.seconds.values()) == clock[0]


def test_steps_are_in_the_order_in_which_they_began(clock: list[float]):
    watch = Stopwatch()
    with watch.timed("b"), watch.timed("a"):
        clock[0] += 1
    assert list(watch.seconds) == ["b", "a"]


def test_a_step_that_fails_is_counted_too(clock: list[float]):
    watch = Stopwatch()
    with watch.timed("all"):
        with suppress(KeyError), watch.timed("part"):
            clock[0] += 5
            raise KeyError
        clock[0] += 1
    assert watch.seconds == {"all": 1, "part": 5}
