"""Functions named on the command line: ``package.module:function`` or ``path/to/file.py:function``.

Naming one is asking for its code to run, as with ``python file.py``.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from factorize.errors import FactorizeError, ModelLoadError


def import_function(
    reference: str, *, error: type[FactorizeError] = ModelLoadError
) -> Callable[..., Any]:
    """Import a function by reference.

    Parameters
    ----------
    reference
        ``package.module:function`` (the current folder counts as installed) or
        ``path/to/file.py:function`` (the file may import its neighbours).
    error
        Class to raise, so that the message comes as what the reference was given for.

    Raises
    ------
    ModelLoadError
        Or ``error``: the module or function is not there, or importing it failed.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name.isidentifier():
        raise error(
            f"{reference}: a function is named package.module:function or path/to/file.py:function."
        )
    try:
        module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    # User code runs here: whatever it raises, SystemExit included, is its own failure to import.
    except (Exception, SystemExit) as failure:
        raise error(f"{reference}: cannot import {place}: {brief(failure)}") from failure
    function = getattr(module, name, None)
    if not callable(function):
        what = "is not callable" if hasattr(module, name) else "does not exist"
        raise error(f"{reference}: {name} {what} in {place}; it has {_functions(module)}.")
    return function


def import_plugins(references: Iterable[str]) -> None:
    """Import ``.py`` files or modules for what they register, unless that is done already.

    Raises
    ------
    ModelLoadError
        One is not there, or importing it failed.
    """
    for reference in references:
        _import_plugin(reference)


def _import_plugin(reference: str) -> None:
    path = Path(reference).expanduser().resolve()
    try:
        if reference.endswith(".py"):
            known = [getattr(one, "__file__", None) for one in [*sys.modules.values()]]
            if str(path) not in known:
                _import_file(path)
        else:
            _import_module(reference)
    except (Exception, SystemExit) as failure:
        raise ModelLoadError(
            f"--plugin {reference}: cannot import it: {brief(failure).rstrip('.')}. Check that "
            "it is there, and that it imports by itself."
        ) from failure


def import_extra(package: str, place: str, *, extra: str) -> Any:
    """Import a package that one of our extras brings.

    Parameters
    ----------
    place
        What needs it, as the message begins.

    Raises
    ------
    ModelLoadError
        It is not installed, or does not import.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as failure:
        if failure.name != package:
            raise ModelLoadError(
                f"{place}: {package} lacks {failure.name}. Install factorize[{extra}]."
            ) from failure
        raise ModelLoadError(f"{place}: needs {package}. Install factorize[{extra}].") from failure
    except Exception as failure:  # versions that do not go together
        raise ModelLoadError(f"{place}: cannot import {package}: {brief(failure)}.") from failure


def brief(failure: BaseException) -> str:
    """Class and first line of an exception, for a message of one line."""
    lines = str(failure).strip().splitlines()
    text = f"{type(failure).__name__}: {lines[0]}" if lines else type(failure).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def _functions(module: ModuleType) -> str:
    """Name what a module defines and can be called."""
    own = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    return ", ".join(own) or "no functions"


def _import_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    # Under a name of its own: a user's resnet.py must not become the module `resnet` for others.
    name = f"_factorize_user_{path.stem}_{abs(hash(str(path))):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str) -> ModuleType:
    with _importable(Path.cwd()):
        return importlib.import_module(name)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put a folder first on the import path, as Python does for a script."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
