"""Values that trainers write beside the weights: of classes that do nothing, whatever a file says.

NumPy scalars, `argparse.Namespace`, paths and dates are data to whoever saved them, but each is
made by a call, and a pickle may call with any arguments and set any state. Nothing here needs them.
So none is built: its name stands for a class of this file that ignores both. Read are only plain
numbers, by `struct`, since modules keep them as attributes; and what is filled item by item, which
torch's unpickler allows for lists and dicts alone.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any


class Inert:
    """Stands for a value that is not read."""

    def __new__(cls, *_: Any) -> Inert:
        """Ignore what it would be made of."""
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Ignore what it would hold."""

    def __bool__(self) -> bool:
        raise TypeError("a value of the file that was not read has no truth")


class _DType:
    """Of a NumPy scalar: its code, such as ``f8``, and its byte order."""

    code: Any = None
    order = "<"

    def __new__(cls, *args: Any) -> _DType:
        self = object.__new__(cls)
        if args and type(args[0]) is str:
            self.code = args[0]
        return self

    def __setstate__(self, state: Any) -> None:
        if type(state) is tuple and len(state) > 1 and type(state[1]) is str:
            self.order = ">" if state[1] == ">" else "<"


_FORMATS = {
    "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I",
    "u8": "Q", "f2": "e", "f4": "f", "f8": "d",
}  # fmt: skip


def _scalar(*args: Any) -> Any:
    """Read a number, as Python's own; texts, objects and the rest stay unread."""
    if len(args) != 2 or type(args[0]) is not _DType or type(args[1]) is not bytes:
        return Inert()
    dtype, data = args
    if dtype.code not in _FORMATS:
        return Inert()
    return struct.unpack(dtype.order + _FORMATS[dtype.code], data)[0]


_NUMPY_TYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16",
    "float32", "float64",
)  # fmt: skip
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_NAMES = {
    "argparse": ("Namespace",),
    # What defaultdicts make, and small values of the language that pickles call for.
    "builtins": (
        "bool", "bytes", "dict", "float", "frozenset", "int", "list", "range", "slice", "str",
        "tuple",
    ),
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "numpy": ("ndarray", "bool_", "str_", "bytes_", *_NUMPY_TYPES),
    "numpy.core.multiarray": ("_reconstruct",),
    "numpy._core.multiarray": ("_reconstruct",),  # since NumPy 2
    "numpy.dtypes": tuple(
        f"{name.capitalize().replace('Ui', 'UI')}DType" for name in (*_NUMPY_TYPES, "str")
    ),
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,  # in Python 3.13
    "torch.torch_version": ("TorchVersion",),
    "types": ("SimpleNamespace",),
}  # fmt: skip
_READ: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "defaultdict"): lambda *_: {},
    ("collections", "deque"): lambda *_: [],
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}


def stand_ins() -> list[type]:
    """Classes for the unpickler's list, under the names that files use."""
    unread = {(place, name): Inert for place, names in _NAMES.items() for name in names}
    made = [_stand_in(*asked, make) for asked, make in (unread | _READ).items()]
    return [*made, Inert, _DType]  # the last two get a state, and so must be listed themselves


def _stand_in(place: str, name: str, make: Callable[..., Any]) -> type:
    def new(_: type, *args: Any) -> Any:
        return make(*args)

    return type(name, (), {"__new__": new, "__module__": place, "__qualname__": name})
