"""An ONNX file as it was found: read and checked, and never changed."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from factorize.errors import ModelLoadError
from factorize.system.imports import brief

_DEFAULT = ("", "ai.onnx")  # names of the same domain
_HALF = ("float16", "bfloat16")


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """The file that a twin was made of.

    Attributes
    ----------
    proto
        The ``onnx.ModelProto``; data that is in other files is not in it.
    """

    path: Path
    proto: Any

    def __deepcopy__(self, memo: Any) -> OnnxFile:
        """Copies of a twin come from the same file, which may be large."""
        del memo
        return self

    def fresh(self) -> Any:
        """A copy of the proto, to be changed."""
        return copy.deepcopy(self.proto)

    @cached_property
    def opset(self) -> int:
        """Version of the operators of the default domain."""
        found = [one.version for one in self.proto.opset_import if one.domain in _DEFAULT]
        return found[0] if found else 1

    @cached_property
    def inputs(self) -> tuple[Any, ...]:
        """The graph's inputs; older files list the initializers among them."""
        graph = self.proto.graph
        known = {tensor.name for tensor in graph.initializer}
        return tuple(value for value in graph.input if value.name not in known)

    @cached_property
    def constants(self) -> dict[str, Any]:
        """The ``TensorProto`` of each value that is known: initializers and Constant nodes."""
        found = {tensor.name: tensor for tensor in self.proto.graph.initializer}
        for node in self.proto.graph.node:
            if node.op_type == "Constant" and node.domain in _DEFAULT and node.output:
                for attribute in node.attribute:
                    if attribute.name == "value":
                        found[node.output[0]] = attribute.t
        return found

    @cached_property
    def external(self) -> tuple[str, ...]:
        """Files beside this one that hold its data, as the proto names them."""
        return tuple(
            dict.fromkeys(
                external_info(tensor).location
                for tensor in self.constants.values()
                if is_external(tensor)
            )
        )

    @property
    def bytes(self) -> int:
        """Of the file and of those that hold its data."""
        files = [self.path, *(self.path.parent / name for name in self.external)]
        return sum(file.stat().st_size for file in files)

    @property
    def half(self) -> bool:
        """Whether an input is half precision, or most weights are."""
        import onnx

        names = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
        sizes = [0, 0]
        for tensor in self.constants.values():
            if tensor.data_type in (*names, onnx.TensorProto.FLOAT):
                sizes[tensor.data_type in names] += prod(tensor.dims)
        typed = any(value.type.tensor_type.elem_type in names for value in self.inputs)
        return typed or sizes[1] > sizes[0]

    def array(self, tensor: Any) -> np.ndarray:
        """The values of a ``TensorProto`` of this file, in it or beside it.

        Raises
        ------
        ModelLoadError
            The data is not that of its shape, or not to be had.
        """
        from onnx import helper, numpy_helper

        place = f"{self.path}: {tensor.name or 'a Constant'}"
        if not is_external(tensor):
            try:
                if tensor.HasField("raw_data"):  # a few bytes must not ask for much memory
                    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
                    wanted = prod(tensor.dims) * kind.itemsize
                    if kind.itemsize > 1 and len(tensor.raw_data) != wanted:
                        raise ValueError(f"{len(tensor.raw_data)} bytes in place of {wanted}")
                return numpy_helper.to_array(tensor)
            except Exception as error:  # numpy and onnx have several
                raise ModelLoadError(
                    f"{place}: its data must be that of its shape {tuple(tensor.dims)}, got "
                    f"{brief(error)}. Export the model again."
                ) from error
        file, offset, length = self.place_of(tensor)
        kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if length != prod(tensor.dims) * kind.itemsize:
            raise ModelLoadError(
                f"{place}: its data must have {prod(tensor.dims) * kind.itemsize:,} bytes, as its "
                f"shape says, got {length:,} in {file.name}. Export the model again."
            )
        flat = np.fromfile(file, kind, prod(tensor.dims), offset=offset)
        return flat.reshape(tuple(tensor.dims))

    def place_of(self, tensor: Any) -> tuple[Path, int, int]:
        """File, offset and bytes of a tensor's external data, all of which are there.

        Raises
        ------
        ModelLoadError
            They are not, or not in the model's folder.
        """
        info = external_info(tensor)
        place = f"{self.path}: {tensor.name or 'a Constant'}"
        folder = self.path.parent.resolve()
        try:
            file = (folder / info.location).resolve()
            inside = file.is_relative_to(folder) and bool(info.location)
            size = file.stat().st_size if inside and file.is_file() else -1
        except (OSError, ValueError):  # a name that no file can have
            inside, size, file = False, -1, folder
        if not inside:
            raise ModelLoadError(
                f"{place}: its data must be in a file in the model's folder, got "
                f"{info.location!r}. Export the model again."
            )
        offset, length = info.offset, info.length
        length = max(size - offset, 0) if length is None else length
        if size < 0 or offset < 0 or length < 0 or offset + length > size:
            there = "no such file" if size < 0 else f"{size:,} bytes"
            raise ModelLoadError(
                f"{place}: its data must be bytes {offset:,} to {offset + length:,} of {file}, got "
                f"{there}. Put the whole file beside the model."
            )
        return file, offset, length


def read_onnx(path: Path) -> OnnxFile:
    """Read an ONNX file, and check that all of its data is there.

    Raises
    ------
    ModelLoadError
        It is no such file, or a damaged one.
    """
    import onnx

    if not path.exists():
        raise ModelLoadError(f"{path}: no such file. Correct the path.")
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own classes are not public
        raise ModelLoadError(
            f"{path}: must be an ONNX file that can be read, got {brief(error)}. Export it again."
        ) from error
    file = OnnxFile(path, proto)
    graph = proto.graph
    if not graph.node or not graph.output:
        raise ModelLoadError(f"{path}: must have nodes and outputs, got none. Export it again.")
    if dumb := [node for node in graph.node if not (node.output and node.output[0])]:
        raise ModelLoadError(
            f"{path}: every node must have an output, got none of {dumb[0].op_type} "
            f"{dumb[0].name!r}. Export it again."
        )
    if odd := [value for value in (*graph.input, *graph.output) if not _is_tensor(value)]:
        raise ModelLoadError(
            f"{path}: inputs and outputs must be tensors of numbers, got {odd[0].name}. Export it "
            "with such."
        )
    if graph.sparse_initializer:
        raise ModelLoadError(
            f"{path}: its weights must be dense, got {len(graph.sparse_initializer)} sparse "
            "initializers. Export it with dense ones."
        )
    for tensor in file.constants.values():
        if is_external(tensor):
            file.place_of(tensor)
    return file


def _is_tensor(value: Any) -> bool:
    from onnx import TensorProto

    no_number = (TensorProto.UNDEFINED, TensorProto.STRING)
    return value.type.HasField("tensor_type") and value.type.tensor_type.elem_type not in no_number


def is_external(tensor: Any) -> bool:
    """Whether the data of a ``TensorProto`` is in another file."""
    return tensor.data_location == tensor.EXTERNAL


class Place(NamedTuple):
    """Where external data is: the file as the proto names it, and the bytes in it."""

    location: str
    offset: int
    length: int | None


def external_info(tensor: Any) -> Place:
    """What a ``TensorProto`` says of its external data; what is no number is -1."""
    entries = {entry.key: entry.value for entry in tensor.external_data}

    def number(key: str, default: int | None) -> Any:
        text = entries.get(key)
        return default if text is None else int(text) if text.isdecimal() else -1

    return Place(entries.get("location", ""), number("offset", 0), number("length", None))


def widened(array: np.ndarray) -> np.ndarray:
    """Half precision as float32; anything else as it is."""
    return array.astype(np.float32) if array.dtype.name in _HALF else array
