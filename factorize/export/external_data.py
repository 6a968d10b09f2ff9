"""Data of an ONNX file in files beside it: what stays keeps its place, byte for byte."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from factorize.onnx_graph.onnx_file import OnnxFile, external_info, is_external

_ALIGNED = 64


class DataFiles:
    """Copies of a file's data beside its copy, in which tensors are written.

    New tensors go where removed ones were, as far as they fit, and else to the end.

    Parameters
    ----------
    file
        The original.
    folder
        Where the copy will be.
    kept
        Every ``TensorProto`` of the copy whose data stays.
    """

    def __init__(self, file: OnnxFile, folder: Path, kept: Iterator[Any]) -> None:
        self.folder = folder
        self.used: dict[str, list[tuple[int, int]]] = {name: [] for name in file.external}
        for tensor in kept:
            if is_external(tensor):
                _, start, length = file.place_of(tensor)
                self.used[external_info(tensor).location].append((start, start + length))
        for name in self.used:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.path.parent / name, folder / name)

    def overwrite(self, tensor: Any, data: bytes) -> None:
        """Give a tensor that stays other data of the same length."""
        info = external_info(tensor)
        with (self.folder / info.location).open("r+b") as out:
            out.seek(info.offset)
            out.write(data)

    def add(self, tensor: Any, data: bytes, location: str) -> None:
        """Write the data of a new tensor."""
        used = sorted(self.used[location])
        start = next(begin for begin, end in _gaps(used) if end - begin >= len(data))
        used.append((start, start + len(data)))
        self.used[location] = used
        with (self.folder / location).open("r+b") as out:
            out.seek(start)
            out.write(data)
        tensor.ClearField("raw_data")
        tensor.data_location = tensor.EXTERNAL
        entries: Mapping[str, Any] = {"location": location, "offset": start, "length": len(data)}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))

    def end(self) -> None:
        """Cut off what is behind the last tensor."""
        for location, used in self.used.items():
            with (self.folder / location).open("r+b") as out:
                out.truncate(max((end for _, end in used), default=0))


def _gaps(used: list[tuple[int, int]]) -> Iterator[tuple[int, float]]:
    """Ranges that no tensor has, the last without end."""
    at = 0
    for begin, end in used:
        yield at, begin
        at = max(at, -(-end // _ALIGNED) * _ALIGNED)
    yield at, float("inf")
