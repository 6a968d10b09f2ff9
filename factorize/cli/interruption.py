"""What is said of a run that Ctrl-C or SIGTERM ended: what is left of it, and how to go on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from factorize.cli.exit_codes import Ending
from factorize.run.checks import exists
from factorize.run.files import OUTPUTS
from factorize.run.rounds import CHECKPOINT, work_files
from factorize.system.signals import Terminated, terminable

NOTHING = "nothing was written"
MEASURED = "; times and fits so far are kept, the same command goes on from them"
"""Of a search, whose cache has them."""


class RunInterrupted(Exception):  # noqa: N818, it is no fault
    """Ctrl-C or SIGTERM; the message is what is left of the work."""

    def __init__(self, left: str, by: KeyboardInterrupt | None = None) -> None:
        super().__init__(left)
        self.code = Ending.TERMINATED if isinstance(by, Terminated) else Ending.INTERRUPTED


def interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command end with `RunInterrupted`, wherever it is."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with terminable():
                command(*args, **kwargs)
        except KeyboardInterrupt as error:
            raise RunInterrupted(NOTHING, error) from error

    return run


@contextmanager
def going_on(searching: bool) -> Iterator[None]:
    """What writes no files, and may search."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise RunInterrupted(f"{NOTHING}{MEASURED if searching else ''}", error) from error


def written(folder: Path) -> dict[str, int]:
    """When the files of a run were written, 0 for those that are not there."""
    times = {name: _time(folder / name) for name in OUTPUTS}
    kept = [folder / name for name in work_files(folder)]
    return {CHECKPOINT: max(map(_time, kept), default=0), **times}


def _time(file: Path) -> int:
    return file.stat().st_mtime_ns if exists(file) else 0


def what_is_left(
    folder: Path, before: dict[str, int], resume: bool, calibration: Path | None, searching: bool
) -> str:
    """Of a run's work.

    Parameters
    ----------
    before
        What `written` gave before the run: files of an earlier one are none of its work.
    calibration
        A file that it was to save.
    searching
        Whether it searches, so that the same command finds in the cache what was measured.
    """
    now = written(folder)
    if now[CHECKPOINT] and (resume or now[CHECKPOINT] != before[CHECKPOINT]):
        return goes_on(folder)
    if now[OUTPUTS[0]] != before[OUTPUTS[0]]:
        there = [name for name in OUTPUTS if now[name]]
        all_there = len(there) == len(OUTPUTS)
        return (
            f"{'all files are in' if all_there else ', '.join(there) + ' are in'} {folder}{os.sep}"
        )
    saved = calibration is not None and exists(calibration)
    return f"{NOTHING}{f' but {calibration}' if saved else ''}{MEASURED if searching else ''}"


def goes_on(folder: Path) -> str:
    """How, where there is a checkpoint."""
    return f"{folder / CHECKPOINT} is kept, the same command with --resume goes on"
