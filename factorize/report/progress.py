"""Progress on the terminal: one line for the whole run, the step that it is at nested in it."""

from __future__ import annotations

import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

LOG_SECONDS = 30.0
STEP_SECONDS = 2.0  # a step that takes longer is told
AT_ONCE = ("export", "measure latency")  # take a while, and do not tell how far they are
SURE = 0.05  # of a step must be done before it is told what is left of it
STALE = 3.0  # times as long as one unit of work took on average: then nothing is told any more


class Remaining(ProgressColumn):
    """What is left of a step, where that can be told honestly."""

    def render(self, task: Task) -> Text:
        """Empty before `SURE`, at the end, and where a unit takes far longer than those before."""
        waited = time.monotonic() - task.fields.get("moved", time.monotonic())
        left = remaining(task.completed, task.total, task.elapsed, waited)
        return Text("" if left is None else f"{timedelta(seconds=round(left))} left")


def remaining(
    done: float, total: float | None, elapsed: float | None, waited: float
) -> float | None:
    """Seconds that are left at the pace so far.

    Parameters
    ----------
    elapsed, waited
        Seconds since the step began, and since the last unit of work.
    """
    if not total or not elapsed or not SURE * total <= done < total:
        return None
    each = elapsed / done
    return None if waited > STALE * each else each * (total - done)


class Bars:
    """The whole run and its step; without a terminal, a line for each, and every half minute.

    Steps come in any order and more than once (a search fits many nets): each time is one of its
    own, so that no bar goes back.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description:>24}"), BarColumn(), TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(), Remaining(), TextColumn("{task.fields[values]}"),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self.whole = self.progress.add_task("the whole run", total=None, count="", values="")
        self.step: str | None = None
        self.task = self.whole
        self.done = -1
        self.begun: dict[str, int] = {}
        self.started = self.logged = self.moved = time.monotonic()
        self.told = False

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, step: str, done: int, total: int, values: dict[str, float]) -> None:
        """What the steps call, see `types.Progress`."""
        now = time.monotonic()
        if self.step != step or done < self.done:
            self._begin(step, now)
        if done != self.done:
            self.moved, self.done = now, done
        count = f"{done}/{total}" if total else ""
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.progress.update(
            self.task, completed=done, total=total or None, count=count, values=shown,
            moved=self.moved,
        )  # fmt: skip
        if not self.console.is_terminal and self._is_due(step, now):
            self.logged, self.told = now, True
            left = remaining(done, total, now - self.started, 0.0)
            shown += "" if left is None else f"  {timedelta(seconds=round(left))} left"
            line = f"{step} {count}  {shown}".rstrip()
            self.console.print(line, highlight=False, soft_wrap=True)

    def _is_due(self, step: str, now: float) -> bool:
        """Whether it is time for a line: a step's first, or one after long silence."""
        long = step in AT_ONCE or now - self.started > STEP_SECONDS
        first = not self.told and self.begun[step] == 1
        return now - self.logged > LOG_SECONDS or (first and long)

    def _begin(self, step: str, now: float) -> None:
        """Close the step before, and open this one below it."""
        if self.task != self.whole:
            self.progress.update(self.task, visible=False)
            self.progress.stop_task(self.task)
        self.begun[step] = again = self.begun.get(step, 0) + 1
        name = f"  {step}" if again == 1 else f"  {step} ({again})"
        number = sum(self.begun.values())
        self.progress.update(self.whole, count=f"step {number}")
        self.task = self.progress.add_task(name, total=None, count="", values="", moved=now)
        self.step, self.done, self.started, self.moved = step, -1, now, now
        self.told = False
