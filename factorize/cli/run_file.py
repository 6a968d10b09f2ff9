"""A whole command as a file: ``--config run.toml`` reads it, a run writes it.

A name in it is an option's long name without the dashes, or ``model``; what the command line says
wins over it. Paths are relative to the folder that the command runs in.
"""

from __future__ import annotations

import json
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer

from factorize.cli.bare import LEFT_OUT
from factorize.errors import DataError
from factorize.measure.environment import package_version

NOT_IN_IT = ("config", "help_", "help_all", "version", "install_completion", "show_completion")
"""Options that ask for no run."""


def entries_of(command: Any) -> dict[str, Any]:
    """The parameters of a command by their names in a file."""
    return {
        "model" if one.param_type_name == "argument" else max(one.opts, key=len)[2:]: one
        for one in command.params
        if one.name not in NOT_IN_IT
    }


def read_run_file(context: typer.Context, path: Path | None) -> Path | None:
    """Callback of ``--config``: what the file says is the default of each option.

    Raises
    ------
    DataError
        It cannot be read, or a name or a value in it is wrong.
    """
    if path is None or context.resilient_parsing:
        return path
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path}: must be a readable .toml file, got: {error.strerror}. Correct --config."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: must be TOML, got: {error}. Correct the file.") from error
    known = entries_of(context.command)
    values = dict[str, Any]()
    for key, value in content.items():
        name = key.replace("_", "-")
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"Did you mean {near[0]}?" if near else "See --help-all for those there are."
            raise DataError(f"{path}: {key!r} is no option. {hint}")
        one = known[name]
        values[one.name] = _checked(path, name, one, value, context)
    context.default_map = values
    return path


def _checked(path: Path, name: str, option: Any, value: Any, context: typer.Context) -> Any:
    """The value as the command line would have it: its own checks come later, as there."""
    wanted, text = "text or a number", value
    if bare := LEFT_OUT.get(f"--{name}"):
        wanted, fits = f"true or one of {', '.join(bare)}", value is True or value in bare
        text = bare[0] if value is True else value
    elif getattr(option, "is_flag", False):
        wanted, fits = "true or false", isinstance(value, bool)
    elif getattr(option, "multiple", False):
        wanted = 'a list of text such as ["a", "b"]'
        fits = isinstance(value, list) and all(isinstance(one, str) for one in value)
    else:
        fits = isinstance(value, str | int | float) and not isinstance(value, bool)
        text = str(value)
    if not fits:
        raise DataError(f"{path}: {name} must be {wanted}, got {value!r}. Correct the file.")
    try:
        option.process_value(context, text)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        raise DataError(
            f"{path}: {name} is wrong, got {value!r}: {getattr(error, 'message', error)}. Correct "
            "the file."
        ) from error
    return text


def given(context: typer.Context) -> dict[str, Any]:
    """The options that the command line or a file gave, by their names in a file."""
    found = {}
    for name, one in entries_of(context.command).items():
        source = context.get_parameter_source(one.name)
        if source is not None and source.name in ("COMMANDLINE", "DEFAULT_MAP"):
            found[name] = context.params[one.name]
    return found


def as_run_file(context: typer.Context) -> str:
    """The file that repeats the run; one that was resumed is repeated whole."""
    options = {name: value for name, value in given(context).items() if name != "resume"}
    lines = [f"{name} = {_as_toml(value)}" for name, value in options.items()]
    made = package_version("factorize") or "(not installed)"
    head = f"# The run again: factorize --config run.toml, in the same folder. factorize {made}"
    return "\n".join([head, *lines, ""])


def as_words(context: typer.Context) -> list[str]:
    """The command line that says all of a file and of the command line itself."""
    said = dict(given(context))
    words = ["factorize", str(said.pop("model"))]
    for name, value in said.items():
        if isinstance(value, bool) or LEFT_OUT.get(f"--{name}", (None,))[0] == value:
            words += [f"--{name}"] if value else []
        else:
            for one in value if isinstance(value, list | tuple) else [value]:
                words += [f"--{name}", str(one)]
    return words


def _as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_as_toml, value))}]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
