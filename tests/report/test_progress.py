"""Progress: one line for the whole, no bar that goes back, no promise that cannot be kept."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from factorize.report import Bars
from factorize.report.progress import LOG_SECONDS, remaining


@pytest.mark.parametrize(
    ("done", "total", "elapsed", "waited", "left"),
    [
        (5, 10, 20.0, 0.0, 20.0),
        (1, 100, 20.0, 0.0, None),  # too little is known
        (10, 10, 20.0, 0.0, None),  # done: what comes now is another step
        (5, 0, 20.0, 0.0, None),
        (5, None, 20.0, 0.0, None),
        (5, 10, 20.0, 13.0, None),  # a unit that takes far longer than the four seconds of others
        (5, 10, 20.0, 11.0, 20.0),
    ],
)
def test_what_is_left_is_told_where_it_is_known(
    done: int, total: int | None, elapsed: float, waited: float, left: float | None
) -> None:
    assert remaining(done, total, elapsed, waited) == left


def bars() -> tuple[Bars, StringIO]:
    out = StringIO()
    return Bars(Console(file=out, force_terminal=True, width=120)), out


def test_a_step_that_comes_again_begins_anew_and_no_bar_goes_back() -> None:
    shown, out = bars()
    with shown:
        for name, done in (
            ("factorize", 1), ("factorize", 4), ("factorize", 2), ("evaluate", 0), ("factorize", 1),
        ):  # fmt: skip
            before = {task.id: task.completed for task in shown.progress.tasks}
            shown.update(name, done, 4, {})
            after = {task.id: task.completed for task in shown.progress.tasks}
            assert all(after[key] >= value for key, value in before.items())
        names = [task.description.strip() for task in shown.progress.tasks]
    assert names == [
        "the whole run", "factorize", "factorize (2)", "evaluate", "factorize (3)"
    ]  # fmt: skip
    assert [task.visible for task in shown.progress.tasks] == [True, False, False, False, True]
    assert shown.progress.tasks[0].fields["count"] == "step 4"
    assert "the whole run" in out.getvalue()


def test_without_a_terminal_there_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("factorize.report.progress.time.monotonic", lambda: clock[0])
    out = StringIO()
    shown = Bars(Console(file=out, force_terminal=False, width=120))
    for done in range(1, 11):
        clock[0] += LOG_SECONDS / 4
        shown.update("factorize", done, 10, {"loss": 0.5})
    lines = out.getvalue().splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["factorize", "2/10"], ["factorize", "7/10"]
    ]  # fmt: skip
    assert "loss 0.5" in lines[1]
    assert "left" in lines[1]
    shown.update("export", 0, 0, {})
    shown.update("plan", 1, 2, {})  # over in no time
    assert out.getvalue().splitlines()[2:] == ["export"]
