"""Malicious pickles of every family of opcodes, as MODEL: none runs, hangs or takes the memory."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import pytest
from crafted import PROTO, STOP, call, legacy, name, text, zipped
from refusing import MARKER, RUN, Arguments, Case, Corpus, check_refused

CORPUS = Corpus()

SHELL = text(f"touch ../{MARKER}")
TOUCH = text(f"__import__('pathlib').Path('../{MARKER}').touch()")
SYSTEM = name("os", "system")
CONV = name("torch.nn.modules.conv", "Conv2d")
SEQUENTIAL = name("torch.nn.modules.container", "Sequential") + b")\x81"

NAMESPACE = name("argparse", "Namespace") + b")\x81"
SCALAR = name("numpy.core.multiarray", "scalar")
BYTES = call(name("_codecs", "encode"), text("x" * 8), text("latin1"))

LIVE = {  # these run where the unpickler is Python's own
    "GLOBAL and REDUCE": call(SYSTEM, SHELL),
    "eval": call(name("builtins", "eval"), TOUCH),
    "exec of Python 2's names": call(name("__builtin__", "exec"), TOUCH),
    "STACK_GLOBAL": b"\x8c\x05posix\x8c\x06system\x93(" + SHELL + b"tR",
    "INST": b"(" + SHELL + b"ios\nsystem\n",
    "OBJ": b"(" + SYSTEM + SHELL + b"o",
    "memoised": SYSTEM + b"q\x07" + b"0h\x07(" + SHELL + b"tR",
    "long memo": SYSTEM + b"r\xff\xff\x00\x000j\xff\xff\x00\x00(" + SHELL + b"tR",
    "popped afterwards": call(SYSTEM, SHELL) + b"0}",
    "value in a state dict": b"}" + text("0.weight") + call(SYSTEM, SHELL) + b"s",
    "item of a list": b"](" + call(SYSTEM, SHELL) + b"e",
    "key of a dict": b"}(" + call(SYSTEM, SHELL) + b"Nu",
    "subprocess": call(name("subprocess", "getoutput"), SHELL),
}
DEAD = {  # these need torch's unpickler to be wrong in some way
    "getattr": call(call(name("builtins", "getattr"), name("os", "path"), text("os")), b"N"),
    "NEWOBJ": SYSTEM + b"(" + SHELL + b"t\x81",
    "NEWOBJ_EX": SYSTEM + b"(" + SHELL + b"t}\x92",
    "BUILD of a module": CONV + b")\x81}" + text("x") + call(SYSTEM, SHELL) + b"sb",
    "partial": call(call(name("functools", "partial"), SYSTEM, SHELL)),
    "constructor": call(CONV, b"K\x01", b"K\x01", b"K\x01"),
    "torch load": call(name("torch.serialization", "load"), text("net.pt")),
    "torch hub": call(name("torch.hub", "load"), text("net.pt")),
    "Namespace of a class": NAMESPACE + b"}" + text("__class__") + CONV + b"sb",
    "Namespace in itself": NAMESPACE + b"q\x01}" + text("x") + b"h\x01sb",
    "Namespace for weights": b"}" + text("model") + NAMESPACE + b"s",
    "defaultdict of a function": call(name("collections", "defaultdict"), SYSTEM) + SHELL + b"Ns",
    "defaultdict as weights": b"}" + text("model") + call(
        name("collections", "defaultdict"), name("builtins", "list")) + text("a") + b"Nss",
    "deque of a function": call(name("collections", "deque"), b"]" + SYSTEM + b"a"),
    "scalar of an object": call(SCALAR, call(name("numpy", "dtype"), text("O")), BYTES),
    "scalar of half its bytes": call(SCALAR, call(name("numpy", "dtype"), text("f4")), BYTES),
    "dtype of fields": call(name("numpy", "dtype"), b"](" + text("a") + CONV + b"\x86e"),
    "array of 16 TiB": call(name("numpy", "ndarray"), b"\x8a\x06\0\0\0\0\0\x10\x85"),
    "array of a class": call(name("numpy.core.multiarray", "_reconstruct"), CONV, b")", b"N"),
    "array of a file": call(name("numpy", "memmap"), text("/etc/passwd")),
    "numpy's own loader": call(name("numpy", "load"), text("net.pt")),
    "bytes of 16 TiB": call(name("builtins", "bytes"), b"\x8a\x06\0\0\0\0\0\x10"),
    "list of a range without end": call(
        name("builtins", "list"), call(name("builtins", "range"), b"\x8a\x06\0\0\0\0\0\x10")),
    "path made": call(name("pathlib", "Path.touch"), call(name("pathlib", "Path"), SHELL)),
    "attribute of a module that is data": SEQUENTIAL + b"}" + text("_modules") + NAMESPACE + b"sb",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x01",
    "EXT4": b"\x84\x01\x00\x00\x01",
    "PERSID": b"Pos.system\n",
    "BINPERSID": SHELL + b"Q",
    "NEXT_BUFFER": b"\x97\x98",
    "STRING": b"S'touch'\n",
    "INT of 5000 digits": b"I" + b"9" * 5000 + b"\n",
    "LONG4 of 2 GiB": b"\x8b\xff\xff\xff\x7f\x01",
    "LONG1 as a key": b"}\x8a\xff" + b"\x7f" * 255 + b"Ns",
    "BINUNICODE of 4 GiB": b"X\xff\xff\xff\xff!",
    "BINUNICODE8 of an exabyte": b"\x8d" + struct.pack("<Q", 1 << 60) + b"!",
    "BINBYTES8 of an exabyte": b"\x8e" + struct.pack("<Q", 1 << 60) + b"!",
    "BYTEARRAY8 of an exabyte": b"\x96" + struct.pack("<Q", 1 << 60) + b"!",
    "FRAME of an exabyte": b"\x95" + struct.pack("<Q", 1 << 60) + b"}",
    "GET of nothing": b"h\x07",
    "POP of nothing": b"0000",
    "POP_MARK of nothing": b"1",
    "APPENDS to a dict": b"}(NNe",
    "SETITEMS of a list": b"](NNu",
    "unknown opcode": b"\xff",
    "no end": b"}" + text("0.weight"),
    "16 TiB of zeros": call(name("builtins", "bytearray"), b"\x8a\x06\0\0\0\0\0\x10"),
    "module in itself": SEQUENTIAL + b"q\x01}" + text("_modules") + b"}" + text("0") + b"h\x01ssb",
    "3000 modules deep": (SEQUENTIAL + b"}" + text("_modules") + b"}" + text("0")) * 3000
    + SEQUENTIAL + b"}b" + b"ssb" * 3000,
    "100000 lists deep": b"}" + text("epoch") + b"]" * 100_000 + b"a" * 99_999 + b"s",
    "2000 dicts deep": (text("model") + b"}").join([b"}", *[b""] * 2000]) + b"s" * 2000,
    "list in itself": b"]q\x01h\x01a",
    "tuple of 2**60 as a key": b"}K\x01" + b"q\x01h\x01\x86" * 60 + b"Ns",
    "tuple of 2**60 in a set": call(
        name("builtins", "set"), b"](K\x01" + b"q\x01h\x01\x86" * 60 + b"e"
    ),
    "name of 200000 characters": name("x" * 100_000, "y" * 100_000) + b")\x81",
    "name with escape codes": name("os\x1b]0;owned\x07", "system\x1b[2J") + b")\x81",
    "key of a million characters": b"}" + text("k" * 10**6) + b"K\x01s",
    "key with escape codes": b"}" + text("\x1b[2J\x1b]0;owned\x07") + b"K\x01s",
}  # fmt: skip


for _number, (_name, _body) in enumerate((LIVE | DEAD).items()):
    _write = (zipped, legacy)[_number % 2]

    def _build(folder: Path, write=_write, body: bytes = _body) -> Arguments:
        return (write(PROTO + body + STOP, folder / "net.pt").name, *RUN)

    CORPUS.add(f"{_name}, {_write.__name__}", _build, "error: net.pt: ")


@CORPUS.parametrize()
def test_refused(case: Case, tmp_path: Path) -> None:
    check_refused(case, tmp_path)


@pytest.mark.parametrize("program", list(LIVE))
def test_the_programs_are_live(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Otherwise the tests above would prove little."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    pickle.loads(PROTO + LIVE[program] + STOP)
    assert (tmp_path / MARKER).exists()
