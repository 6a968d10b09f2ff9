"""Crafted pickles: programs for the unpickler, and files that hold them."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path

import torch

PROTO, STOP = b"\x80\x02", b"."


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(function: bytes, *args: bytes) -> bytes:
    return function + b"(" + b"".join(args) + b"tR"


def zipped(program: bytes, path: Path) -> Path:
    """Write a torch.save archive with this pickle in it."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, program if entry.endswith("data.pkl") else content)
    return path


def legacy(program: bytes, path: Path) -> Path:
    """Write the format before PyTorch 1.6: pickles in a row, the fourth is the object."""
    buffer = io.BytesIO()
    torch.save({}, buffer, _use_new_zipfile_serialization=False)
    empty = pickle.dumps({}, protocol=2)
    head, found, tail = buffer.getvalue().partition(empty + pickle.dumps([], protocol=2))
    assert found
    path.write_bytes(head + program + pickle.dumps([], protocol=2) + tail)
    return path
