"""Progress on the terminal."""

from __future__ import annotations

import time
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOG_SECONDS = 30.0


class Bars:
    """A bar per step; where there is no terminal, a line every half minute."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description:>22}"), BarColumn(), TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[values]}"),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self.tasks: dict[str, TaskID] = {}
        self.logged = time.monotonic()

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, step: str, done: int, total: int, values: dict[str, float]) -> None:
        """What the steps call, see `types.Progress`."""
        count = f"{done}/{total}" if total else ""
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if step not in self.tasks:
            for task in self.tasks.values():
                self.progress.stop_task(task)
            self.tasks[step] = self.progress.add_task(step, total=None, count="", values="")
        self.progress.update(
            self.tasks[step], completed=done, total=total or None, count=count, values=shown
        )
        if not self.console.is_terminal and time.monotonic() - self.logged > LOG_SECONDS:
            self.logged = time.monotonic()
            left = next(t for t in self.progress.tasks if t.id == self.tasks[step]).time_remaining
            shown += "" if left is None else f"  {timedelta(seconds=round(left))} left"
            self.console.print(f"{step} {count}  {shown}", highlight=False, soft_wrap=True)
