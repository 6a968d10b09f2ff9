"""Exported programs from untrusted files: a .pt2 archive made anew of what is known to be safe.

``torch.export.load`` unpickles, evaluates text and loads libraries, each where a file asks for it.
It is given another archive, in memory, in which nothing asks: the program's JSON as `contents`
leaves it, tensors as bytes or as ``torch.load(weights_only=True)`` reads them, and no sample
inputs.
"""

from __future__ import annotations

import io
import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from factorize.errors import ModelLoadError
from factorize.program.contents import RefusedError, clean_payloads, clean_program
from factorize.system.archives import check_unpacked_size
from factorize.system.imports import brief
from factorize.system.quiet import quiet

_MOST_JSON = 10**8  # bytes; a program of a thousand layers has ten million
_OLD = "serialized_exported_program.json"
_COPIED = ("archive_format", "archive_version", "byteorder", ".data/version")
_PAYLOADS = ("weights", "constants")


def is_program(path: Path) -> bool:
    """Whether a file is a zip archive in the layout of ``torch.export.save``."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return False
    inside = {name.partition("/")[2] for name in names}
    return _OLD in names or "archive_format" in inside


def read_program(path: Path, *, trust: bool) -> bytes:
    """An archive that `load_program` may read.

    Parameters
    ----------
    trust
        Take the file as it is: it can do whatever its author wanted.

    Raises
    ------
    ModelLoadError
        The file is damaged, or asks for code to be run.
    """
    try:
        if trust:
            return path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            check_unpacked_size(archive, path, ModelLoadError)
            return _Archive(archive).clean()
    except ModelLoadError:
        raise
    except RefusedError as refusal:
        raise ModelLoadError(
            f"{path}: is refused: {refusal}. Export the model again without it, or use "
            "--trust-pickle if you trust whoever made the file."
        ) from refusal
    except Exception as failure:  # malformed in any of the ways that there are
        raise _damaged(path, failure) from failure


def load_program(archive: bytes, path: Path) -> ExportedProgram:
    """A fresh program of an archive.

    Raises
    ------
    ModelLoadError
        torch cannot read it.
    """
    try:
        with quiet(logging.CRITICAL):  # torch logs what it raises, and what it does then
            return torch.export.load(io.BytesIO(archive))
    except Exception as failure:
        raise _damaged(path, failure) from failure


def _damaged(path: Path, failure: Exception) -> ModelLoadError:
    return ModelLoadError(
        f"{path}: cannot be loaded by torch {torch.__version__}: the file is truncated, damaged or "
        f"of another version ({brief(failure)}). Export the model again."
    )


class _Archive:
    """A file's entries, and the archive that is made of them."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.entries = {one.filename: one for one in archive.infolist()}
        if len(self.entries) < len(archive.infolist()):
            raise RefusedError("it has two entries of one name")
        self.made: dict[str, bytes] = {}

    def clean(self) -> bytes:
        """The archive as bytes."""
        if _OLD in self.entries:
            self._old()
        else:
            self._new()
        whole = io.BytesIO()
        with zipfile.ZipFile(whole, "w") as archive:
            for name, content in self.made.items():
                archive.writestr(name, content)
        return whole.getvalue()

    def _old(self) -> None:
        """The layout before torch 2.8."""
        self.made["version"] = self._read("version", 100)
        self.made[_OLD] = clean_program(self._read(_OLD))
        for part in ("state_dict", "constants"):
            self.made[f"serialized_{part}.pt"] = self._tensors(f"serialized_{part}.pt")
        self.made["serialized_example_inputs.pt"] = b""

    def _new(self) -> None:
        (head,) = (n for n in self.entries if n.partition("/")[2] == "archive_format")
        root = head.partition("/")[0]
        inside = {name.partition("/")[2] for name in self.entries}
        if any(name.startswith("data/aotinductor/") for name in inside):
            raise RefusedError("it holds compiled code")
        programs = {name for name in inside if name.startswith("models/")}
        if programs != {"models/model.json"}:
            raise ValueError(f"one program is expected, found {sorted(programs)[:3]}")
        for name in _COPIED:
            if name in inside:
                self.made[f"{root}/{name}"] = self._read(f"{root}/{name}", 100)
        program = f"{root}/models/model.json"
        self.made[program] = clean_program(self._read(program))
        for kind in _PAYLOADS:
            self._payloads(f"{root}/data/{kind}", kind)
        self.made[f"{root}/data/sample_inputs/model.pt"] = b""

    def _payloads(self, folder: str, kind: str) -> None:
        if f"{folder}/model.pt" in self.entries:  # of torch 2.8
            self.made[f"{folder}/model.pt"] = self._tensors(f"{folder}/model.pt")
            return
        listed = f"{folder}/model_{kind}_config.json"
        payloads = clean_payloads(self._read(listed))
        for name, payload in payloads.items():
            file = f"{folder}/{payload['path_name']}"
            if "/" in payload["path_name"] or file not in self.entries:
                raise ValueError(f"there is no data of {name}")
            self._check_size(name, payload["tensor_meta"], self.entries[file].file_size)
            if file not in self.made:
                self.made[file] = self.archive.read(file)
        self.made[listed] = json.dumps({"config": payloads}).encode()

    @staticmethod
    def _check_size(name: str, meta: dict[str, Any], stored: int) -> None:
        """Refuse a tensor of more values than are stored: it takes memory that no file has."""
        values = 1
        for size in meta["sizes"]:
            values *= size["as_int"]
        if values < 0 or values > stored:
            raise ValueError(f"{name} has {values:,} values in {stored:,} bytes")

    def _read(self, name: str, most: int = _MOST_JSON) -> bytes:
        if self.entries[name].file_size > most:
            raise ValueError(f"{name} has {self.entries[name].file_size:,} bytes")
        return self.archive.read(name)

    def _tensors(self, name: str) -> bytes:
        """A dict of tensors, unpickled by torch's short list of classes, and pickled again."""
        content = self.archive.read(name)
        if not content:
            return content
        try:
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as failure:
            raise RefusedError(
                f"{name} holds more than tensors, and unpickling it could run any code"
            ) from failure
        for key, tensor in loaded.items():
            if not isinstance(tensor, Tensor):
                raise RefusedError(f"{key} is no tensor")
            stored = tensor.untyped_storage().nbytes() // tensor.element_size()
            if tensor.numel() > stored:
                raise ValueError(f"{key} has {tensor.numel():,} values in {stored:,}")
        whole = io.BytesIO()
        torch.save(loaded, whole)
        return whole.getvalue()
