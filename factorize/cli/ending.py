"""How the command ends: its exit code, and the one line that an error is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import typer
from rich.text import Text

from factorize.cli.exit_codes import Ending
from factorize.cli.interruption import RunInterrupted
from factorize.cli.parse import one_line
from factorize.errors import BudgetError, FactorizeError
from factorize.report import Console
from factorize.system import processes


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
        return code or Ending.DONE
    except BudgetError as error:
        _fail(str(error))
        return Ending.UNREACHED
    except FactorizeError as error:
        return _fail(str(error), alone=processes.is_own(error))
    except (RunInterrupted, typer.Abort) as error:
        code = getattr(error, "code", Ending.INTERRUPTED)
        if code != Ending.TERMINATED:  # which all processes are told
            processes.give_way()
        left = str(error) or "nothing was written"
        console.print(Text(f"interrupted: {left}", style="bold red"), soft_wrap=True)
        return code
    except Exception as error:
        if not hasattr(error, "format_message"):  # not the parser's own complaint: a bug of ours
            raise
        return _fail(f"{error.format_message().rstrip('.')}. See --help.")  # type: ignore[attr-defined]


def _fail(message: str, alone: bool = False) -> int:
    if not alone and processes.give_way():
        return Ending.REFUSED
    Console(stderr=True).print(f"error: {one_line(message)}", style="bold red", markup=False,
                  highlight=False, soft_wrap=True)  # fmt: skip
    return Ending.REFUSED
