"""Reading ``report.json`` back."""

from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from factorize.errors import DataError
from factorize.report.record import FORMAT, VERSION, Report


def load_report(path: str | Path) -> Report:
    """Read a report that a run has written.

    Raises
    ------
    DataError
        The file is missing, is not a report, is of another version, or an entry does not parse.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path}: the report must be a readable file: {error.strerror}. A run writes "
            "report.json into its folder."
        ) from error
    except (ValueError, RecursionError) as error:  # ValueError: also of numbers too long
        raise DataError(f"{path}: the report must be JSON: {error}.") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise DataError(f'{path}: a report must say "format": "{FORMAT}". A run writes one.')
    if (version := content.pop("version", None)) != VERSION:
        raise DataError(
            f"{path}: the report's version must be {VERSION}, got {version!r}. "
            "Read it with the version of factorize that wrote it."
        )
    content.pop("derived", None)  # follows from the rest
    try:
        return _read(Report, content, "")
    except _MismatchError as error:
        raise DataError(f"{path}: {error}. Was it edited? Run again to write it anew.") from error


class _MismatchError(Exception):
    """Where the content differs from the type."""


def _read(kind: Any, value: Any, place: str) -> Any:
    """The JSON value as the type that its field is annotated with."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):  # X | None is the only one in use
        return None if value is None else _read(arguments[0], value, place)
    if dataclasses.is_dataclass(kind):
        return _read_object(kind, value, place)
    if origin is tuple and isinstance(value, list):
        return tuple(_read(arguments[0], v, f"{place}[{i}]") for i, v in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {k: _read(arguments[1], v, f"{place}.{k}") for k, v in value.items()}
    if kind is float and value is None:  # JSON has no NaN
        return float("nan")
    if kind is float and type(value) in (int, float):
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    shown = repr(value) if len(repr(value)) < 60 else type(value).__name__
    raise _MismatchError(f"{place}: must be {getattr(kind, '__name__', kind)}, got {shown}")


def _read_object(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise _MismatchError(f"{place}: must be an object, got {type(value).__name__}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    needed = {n for n, field in fields.items() if field.default is dataclasses.MISSING}
    here = f"{place}." if place else ""
    if missing := sorted(needed - value.keys()):
        raise _MismatchError(f"{here}{missing[0]}: is missing")
    if unknown := sorted(value.keys() - fields.keys()):
        raise _MismatchError(f"{here}{unknown[0]}: is no entry of a report")
    hints = get_type_hints(kind)
    return kind(**{name: _read(hints[name], v, f"{here}{name}") for name, v in value.items()})
