"""Files that are there whole or not at all, and readable as others are."""

from __future__ import annotations

import os
from pathlib import Path

from factorize.errors import OutputError


def write_whole(path: str | Path, text: str) -> None:
    """Write a file that appears under its name only when it is whole.

    Raises
    ------
    OutputError
        It cannot be written; what was there before stays.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8", errors="replace")
        partial.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror}. Choose another path."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def readable_as_usual(path: Path) -> None:
    """Give a file the permissions of any new one: safetensors writes for its owner alone."""
    usual = path.with_name(f"{path.name}.usual")
    usual.touch()
    path.chmod(usual.stat().st_mode)
    usual.unlink()
