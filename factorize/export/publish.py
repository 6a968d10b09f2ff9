"""A file appears under its name only when it is whole and checked."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from factorize.errors import OutputError
from factorize.system.whole_file import readable_as_usual


@contextmanager
def publishing(path: str | Path, force: bool) -> Iterator[Path]:
    """Give a temporary path beside `path`, renamed to it where the block ends without an error.

    Raises
    ------
    OutputError
        If `path` exists and `force` is not set, or its folder cannot be written to.
    """
    path = Path(path)
    if path.exists() and not force:
        raise OutputError(
            f"{path}: exists already. Pass force=True (--force) to overwrite it, or another path."
        )
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise OutputError(
            f"{path}: its folder must exist and be writable, got: {error.strerror}. "
            "Choose another path."
        ) from error
    with folder:
        temporary = Path(folder.name, path.name)
        yield temporary
        try:
            readable_as_usual(temporary)
            temporary.replace(path)
        except OSError as error:
            raise OutputError(
                f"{path}: cannot be written: {error.strerror}. Choose another path."
            ) from error
