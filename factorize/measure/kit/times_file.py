"""Reading ``times.json``, which a stranger's machine wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from factorize.errors import DataError
from factorize.measure.interleave import ChainTime

FORMAT, VERSION = "factorize-times", 1
LARGEST = 1e12  # of its numbers


@dataclass(frozen=True)
class RecordedChain:
    """One entry: the time of a chain, or None where the device refused it."""

    kind: str
    macs: int
    time: ChainTime | None


@dataclass(frozen=True)
class RecordedNet:
    """A whole net beside the dense one.

    Attributes
    ----------
    predicted
        Its speedup by the times of its layers.
    """

    predicted: float
    speedup: float
    p10: float
    p90: float
    runs: int
    original_ms: float
    compressed_ms: float


@dataclass(frozen=True)
class Times:
    """What files say, all together.

    Attributes
    ----------
    net, model
        What it was taken of: what tells the net from others, and its name.
    units
        Time of the dense net, in units of the reference layer's; None where it was not timed.
    unit_ms
        Milliseconds of that.
    """

    source: str
    machine: Mapping[str, Any]
    net: str
    model: str
    batch: int
    unit_ms: float
    units: float | None
    chains: Mapping[str, RecordedChain]
    nets: Mapping[str, RecordedNet]

    @property
    def device(self) -> str:
        """The device's name."""
        return self.machine["device"]

    @property
    def runtime(self) -> str:
        """What ran the files."""
        return self.machine["runtime"]

    @property
    def threads(self) -> int:
        """That it was told to use."""
        return self.machine["threads"]


def read_times(paths: Sequence[str | Path]) -> Times:
    """All files as one.

    Raises
    ------
    DataError
        One cannot be read, or they do not go together.
    """
    first, *more = map(_read, paths)
    for other in more:
        for what in ("net", "batch", "device", "runtime", "threads"):
            ours, theirs = getattr(first, what), getattr(other, what)
            if ours != theirs:
                ours, theirs = (f"that of {t.model}" if what == "net" else getattr(t, what)
                                for t in (first, other))  # fmt: skip
                raise DataError(
                    f"--times {other.source}: its {what} must be that of {first.source}, {ours}, "
                    f"got {theirs}. Give files of one net on one device."
                )
        first = Times(
            f"{first.source} and {other.source}", first.machine, first.net, first.model,
            first.batch, first.unit_ms, first.units or other.units,
            {**first.chains, **other.chains}, {**first.nets, **other.nets},
        )  # fmt: skip
    return first


def _read(path: str | Path) -> Times:
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"--times {path}: must be a file that bench.py wrote: {error.strerror}. Write a kit "
            "with factorize kit, and run its bench.py on the device."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"--times {path}: must be JSON: {error}. Run bench.py again.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(
            f'--times {path}: must say "format": "{FORMAT}". It is the file that bench.py of a kit '
            "writes."
        )
    if content.get("version") != VERSION:
        raise DataError(
            f"--times {path}: its version must be {VERSION}, got {content.get('version')!r}. Read "
            "it with the version of factorize that wrote the kit."
        )
    try:
        return _times(path.name, content)
    except _MismatchError as error:
        raise DataError(f"--times {path}: {error}. Run bench.py again.") from error


class _MismatchError(Exception):
    """Where the content is not as it should be."""


def _times(name: str, content: dict[str, Any]) -> Times:
    machine = _value(content, "machine", dict, "")
    for key, kind in (("device", str), ("runtime", str), ("threads", int)):
        _value(machine, key, kind, "machine.")
    nets = dict(_entries(content, "nets"))
    dense = nets.pop("dense", {})
    units = _number(dense, "units", "nets.dense.") if "units" in dense else None
    return Times(
        source=name,
        machine=machine,
        net=_value(content, "net", str, ""),
        model=_value(content, "model", str, ""),
        batch=_value(content, "batch", int, ""),
        unit_ms=_number(content, "unit_ms", ""),
        units=units,
        chains={key: _chain(one, f"chains[{key}].") for key, one in _entries(content, "chains")},
        nets={
            key: RecordedNet(
                **{f.name: _number(one, f.name, f"nets.{key}.") for f in fields(RecordedNet)}  # type: ignore[arg-type]
            )
            for key, one in nets.items()
            if "refused" not in one
        },
    )


def _chain(entry: dict[str, Any], place: str) -> RecordedChain:
    kind, macs = _value(entry, "kind", str, place), _value(entry, "macs", int, place)
    if "refused" in entry:
        return RecordedChain(kind, macs, None)
    numbers = {field.name: _number(entry, field.name, place) for field in fields(ChainTime)}
    return RecordedChain(kind, macs, ChainTime(**numbers))


def _entries(content: dict[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    found = _value(content, key, dict, "")
    return [(one, _value(found, one, dict, f"{key}.")) for one in found]


def _number(content: dict[str, Any], key: str, place: str) -> float:
    value = content.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _MismatchError(f"{place}{key}: must be a number, got {_shown(value)}")
    if not 0 < value < LARGEST:  # nor NaN
        raise _MismatchError(f"{place}{key}: must be above 0 and below {LARGEST:g}, got {value!r}")
    return float(value)


def _value(content: dict[str, Any], key: str, kind: type, place: str) -> Any:
    value = content.get(key)
    if type(value) is not kind:
        wanted = {dict: "an object", str: "a text", int: "an integer"}[kind]
        raise _MismatchError(f"{place}{key}: must be {wanted}, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) < 60 else type(value).__name__
