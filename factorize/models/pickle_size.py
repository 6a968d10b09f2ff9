"""What a pickle unfolds to: a few bytes can ask for a tuple whose hash takes a lifetime.

A tuple of twice the same tuple, sixty times over, is 250 bytes. As the key of a dict it is hashed,
which visits its 2**60 leaves, in C, where not even Ctrl-C arrives. So the opcodes are followed with
sizes in place of values before torch runs them.
"""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_MOST = 10**6  # leaves of a tuple; those of honest files have a dozen
_LONGEST = 1000  # characters of a class's name
_LEGACY = 5  # pickles in a row before the storages, in files of PyTorch before 1.6
_TUPLES = frozenset(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"))
_PUT, _GET = (
    frozenset(("PUT", "BINPUT", "LONG_BINPUT")),
    frozenset(("GET", "BINGET", "LONG_BINGET")),
)


def check_pickles(path: Path) -> None:
    """Refuse a torch file with such a tuple, or a name that long.

    Raises
    ------
    pickle.UnpicklingError
        There is one. Whatever else is wrong with the file is torch's to say.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():  # not by name: a name may be there twice
                if entry.filename.endswith(".pkl"):
                    with archive.open(entry) as file:
                        _check(file)
        return
    with path.open("rb") as file:
        for _ in range(_LEGACY):
            if not _check(file):
                return


def _check(file: IO[bytes]) -> bool:
    """Follow one pickle; False where it is malformed, which ends torch's run at the same place."""
    stack: list[int | None] = []  # sizes; None is a mark
    memo: dict[int, int] = {}
    steps: Iterator[tuple[Any, Any, Any]] = pickletools.genops(file)
    try:
        for opcode, argument, _ in steps:
            name = opcode.name
            if name in _PUT:
                memo[argument] = _size(stack[-1])
            elif name == "MEMOIZE":
                memo[len(memo)] = _size(stack[-1])
            elif name in _GET:
                stack.append(memo[argument])
            elif name == "GLOBAL" and len(argument) > _LONGEST:
                # torch looks for advice in its own message, in time that is quadratic in the name.
                raise pickle.UnpicklingError(f"it names a class in {len(argument):,} characters")
            elif name == "MARK":
                stack.append(None)
            else:
                size = 1 + sum(_taken(stack, opcode.stack_before))
                if name in _TUPLES and size > _MOST:
                    raise pickle.UnpicklingError(f"a tuple unfolds to over {_MOST:,} values")
                stack += [size] * len(opcode.stack_after)
    except (ValueError, LookupError, TypeError, MemoryError):
        return False
    return True


def _size(entry: int | None) -> int:
    if entry is None:
        raise ValueError("a mark is no value")
    return entry


def _taken(stack: list[int | None], before: list[Any]) -> list[int]:
    """Take what an opcode uses off the stack, with a mark all above the last one."""
    taken: list[int] = []
    for kind in reversed(before):
        if kind is pickletools.stackslice:
            while stack[-1] is not None:
                taken.append(stack.pop())  # pyright: ignore[reportArgumentType]
        elif kind is pickletools.markobject:
            stack.pop()
        else:
            taken.append(_size(stack.pop()))
    return taken
