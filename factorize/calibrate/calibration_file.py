"""Calibrations as safetensors: tensors in float32, what they are of as JSON in the metadata.

Rounding S to float32 moves a fit by far less than the choice of the images does, and the block
products that S is summed from have no more digits.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from factorize.errors import DataError, OutputError
from factorize.spec import ConvSpec
from factorize.system.whole_file import readable_as_usual
from factorize.tensor.moments import Calibration, LayerCalibration, Moments

_AXES = {f"{kind}{n}d": n for kind in ("conv", "conv_transpose") for n in (1, 2, 3)}
_AXES["linear"] = 0

FORMAT = "factorize-calibration"
VERSION = 1

_PARTS = ("fit", "held_out")
_OUTPUTS = ("cross", "output_mean", "output_second")


def save_calibration(calibration: Calibration, path: str | Path) -> None:
    """Write a calibration; the file appears when it is whole, and replaces one of that name.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    layers = []
    for name, layer in calibration.layers.items():
        entry: dict[str, Any] = {"name": name, "conv": vars(calibration.specs[name])}
        for part in _PARTS:
            moments: Moments = getattr(layer, part)
            entry[part] = {"count": moments.count, "images": moments.images}
            values = {f"second.{i}": values for i, values in enumerate(moments.second)}
            values |= {key: getattr(moments, key) for key in ("mean", *_OUTPUTS)}
            for key, value in values.items():
                if value is not None:
                    tensors[f"{name}.{part}.{key}"] = value.float().contiguous()
        layers.append(entry)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "source": calibration.source,
        "layers": json.dumps(layers),
    }
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            temporary = Path(folder, path.name)
            save_file(tensors, temporary, metadata=metadata)
            readable_as_usual(temporary)
            temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{path}: the calibration cannot be written ({reason}). Give a path that can be."
        ) from error


def load_calibration(path: str | Path) -> Calibration:
    """Read a calibration. Whether it is of a model's layers is for `check` to say.

    Raises
    ------
    DataError
        The file is missing, is not a calibration, is of another version, or what it holds does
        not fit together.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            entries, source = _entries(path, file.metadata() or {})
            keys = set(file.keys())

            def read(key: str, shape: tuple[int, ...]) -> Tensor:
                return _tensor(path, file, keys, key, shape)

            layers = {
                name: LayerCalibration(
                    *(_moments(spec, f"{name}.{part}", entry[part], keys, read) for part in _PARTS)
                )
                for name, (spec, entry) in entries.items()
            }
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path}: the calibration must be a readable, whole safetensors file: {reason}. "
            "Make it anew."
        ) from error
    return Calibration(layers, {name: spec for name, (spec, _) in entries.items()}, source)


def check(calibration: Calibration, specs: Mapping[str, ConvSpec]) -> None:
    """Whether a calibration has all of these layers, and as they are.

    Raises
    ------
    DataError
        A layer is missing or differs.
    """
    for name, spec in specs.items():
        if name not in calibration.layers:
            raise DataError(
                f"{spec.label}: the calibration must have this layer, it has "
                f"{len(calibration.layers)} others. Calibrate on this model, with these layers."
            )
        if difference := spec.difference(calibration.specs[name]):
            difference = difference.replace("in the plan", "in the calibration")
            raise DataError(
                f"{spec.label}: the calibration must be of this very layer: its {difference}. "
                "Calibrate on this model."
            )


def _entries(
    path: Path, metadata: Mapping[str, str]
) -> tuple[dict[str, tuple[ConvSpec, dict[str, Any]]], str]:
    """The layers by name, each a spec and what the file says of it; the source."""
    if metadata.get("format") != FORMAT:
        raise DataError(
            f'{path}: the metadata of a calibration must say "format": "{FORMAT}", got '
            f"{metadata.get('format')!r}. factorize --save-calibration writes one."
        )
    if metadata.get("version") != str(VERSION):
        raise DataError(
            f"{path}: the calibration's version must be {VERSION}, got "
            f"{metadata.get('version')!r}. Make it anew with this version of factorize."
        )
    try:
        layers = json.loads(metadata["layers"])
        if not isinstance(layers, list):
            raise TypeError("not a list")
        found = {entry["name"]: (_spec(entry), entry) for entry in layers}
        whole = len(found) == len(layers) and all(
            type(entry[part][key]) is int and entry[part][key] > 0
            for entry in layers
            for part in _PARTS
            for key in ("count", "images")
        )
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise DataError(
            f'{path}: "layers" in the metadata must describe each layer, got '
            f"{type(error).__name__}: {error}. Make it anew."
        ) from error
    if not whole:
        raise DataError(
            f'{path}: "layers" in the metadata must name each layer once, with its numbers of '
            "patches and images. Make it anew."
        )
    return found, metadata.get("source", "")


def _spec(entry: dict[str, Any]) -> ConvSpec:
    spec = ConvSpec(**{key: _tuples(value) for key, value in entry["conv"].items()})
    known = _AXES.get(spec.kind) == len(spec.kernel)
    if not known or spec.groups != 1 or spec.name != entry["name"]:
        raise ValueError(f"{entry['name']!r} is not an ungrouped layer of that name")
    if not all(type(n) is int and n > 0 for n in spec.weight_shape):
        raise ValueError(f"{entry['name']!r} has a weight of shape {spec.weight_shape}")
    return spec


def _moments(
    spec: ConvSpec,
    place: str,
    counts: dict[str, int],
    keys: set[str],
    read: Callable[[str, tuple[int, ...]], Tensor],
) -> Moments:
    area = prod(spec.kernel)
    length, outputs = spec.in_channels * area, spec.out_channels
    sizes = (spec.in_channels, area) if f"{place}.second.1" in keys else (length,)
    shapes = {"cross": (outputs, length), "output_mean": (outputs,), "output_second": (outputs,)}
    given = any(f"{place}.{key}" in keys for key in _OUTPUTS)
    return Moments(
        second=tuple(read(f"{place}.second.{i}", (n, n)) for i, n in enumerate(sizes)),
        mean=read(f"{place}.mean", (length,)),
        count=counts["count"],
        images=counts["images"],
        **({key: read(f"{place}.{key}", shape) for key, shape in shapes.items()} if given else {}),
    )


def _tensor(path: Path, file: Any, keys: set[str], key: str, shape: tuple[int, ...]) -> Tensor:
    if key not in keys:
        raise DataError(f"{path}: must hold the tensor {key!r}, and does not. Make it anew.")
    entry = file.get_slice(key)  # the shape is looked at before the data is read
    if tuple(entry.get_shape()) != shape or entry.get_dtype() != "F32":
        raise DataError(
            f"{path}: {key} must be float32 of shape {list(shape)} for its layer, got "
            f"{entry.get_dtype()} {list(entry.get_shape())}. Make it anew."
        )
    values = file.get_tensor(key)
    if not torch.isfinite(values).all():
        raise DataError(f"{path}: {key} must be finite, and is not. Make it anew.")
    return values.double()


def _tuples(value: Any) -> Any:
    """JSON has lists where the types have tuples."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
