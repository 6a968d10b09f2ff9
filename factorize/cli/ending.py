"""How the command ends: its exit code, and the one line that an error is."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

import typer
from rich.text import Text

from factorize.cli.interruption import RunInterrupted
from factorize.cli.parse import one_line
from factorize.errors import BudgetError, FactorizeError
from factorize.report import Console
from factorize.system import processes

UNREACHED = 3  # exit code: what was asked for cannot be had, or is not faster
TERMINATED = 128 + signal.SIGTERM


def ended(
    command: Callable[..., int | None], arguments: Sequence[str] | None, console: Console
) -> int:
    """Run a command to its end.

    Parameters
    ----------
    command
        As typer makes it.
    arguments
        None: those of the process.
    console
        Where the main process speaks.

    Returns
    -------
    The exit code.
    """
    try:
        if code := command(arguments, standalone_mode=False):
            processes.give_way()
        return code or 0
    except BudgetError as error:
        _fail(str(error))
        return UNREACHED
    except FactorizeError as error:
        return _fail(str(error), alone=processes.is_own(error))
    except (RunInterrupted, typer.Abort) as error:
        code = getattr(error, "code", 128 + signal.SIGINT)
        if code != TERMINATED:  # which all processes are told
            processes.give_way()
        left = str(error) or "nothing was written"
        console.print(Text(f"interrupted: {left}", style="bold red"), soft_wrap=True)
        return code
    except Exception as error:
        if not hasattr(error, "format_message"):  # not the parser's own complaint: a bug of ours
            raise
        if type(error).__name__ == "NoArgsIsHelpError":  # the help was shown
            return 2
        return _fail(f"{error.format_message().rstrip('.')}. See --help.")  # type: ignore[attr-defined]


def _fail(message: str, alone: bool = False) -> int:
    if not alone and processes.give_way():
        return 2
    Console(stderr=True).print(f"error: {one_line(message)}", style="bold red", markup=False,
                  highlight=False, soft_wrap=True)  # fmt: skip
    return 2
