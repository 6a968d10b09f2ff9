"""How the command may end: each exit code, and what it means."""

from __future__ import annotations

import signal
from enum import IntEnum


class Ending(IntEnum):
    """An exit code."""

    DONE = 0
    INCOMPLETE = 1
    REFUSED = 2
    UNREACHED = 3
    INTERRUPTED = 128 + signal.SIGINT
    TERMINATED = 128 + signal.SIGTERM


MEANINGS = {
    Ending.DONE: "All was done that was asked for.",
    Ending.INCOMPLETE: "The net is made, but a file of it could not be, which the report says. Or, "
    "with a traceback: a fault of factorize.",
    Ending.REFUSED: "The command, a file or the data is wrong: one line says what, and the fix. "
    "Nothing was written.",
    Ending.UNREACHED: "A budget cannot be kept, the net is not faster though time was asked for, "
    "or fine-tuning diverged. What there is, is written.",
    Ending.INTERRUPTED: "Ctrl-C; the last line says what is left, and how to go on.",
    Ending.TERMINATED: "SIGTERM; the same.",
}
