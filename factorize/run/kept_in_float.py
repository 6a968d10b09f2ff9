"""How much faster the layers of a file are in integers than in float, on the target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from factorize.errors import ExportError
from factorize.graph.spec_of import spec_of
from factorize.measure import LatencyModel, Target, speedup
from factorize.measure.runtimes.running import batched
from factorize.onnx_graph import Twin, make_twin, read_onnx
from factorize.quantize import as_integers, rows_in
from factorize.quantize.places import places_of
from factorize.quantize.source import named_inputs
from factorize.tensor.call import evaluating
from factorize.types import Speedup


@dataclass(frozen=True)
class Timed:
    """What the clock says of layers in integers.

    Attributes
    ----------
    slower
        Names of those that are to stay in float, each with the reason.
    gains
        By layer of the others: the time that it and those in a row with it gain in integers.
    """

    slower: dict[str, str]
    gains: dict[str, float]


def timed_in_integers(file: Path, example_input: Any, timer: LatencyModel) -> Timed:
    """Time the layers of a file in integers and in float.

    Layers that stand in a row, as the stages of a chain do, are timed together. Where some are
    slower in integers, by more than the noise, the net is timed with them in float and without:
    going from float to integers and back costs time too.

    Parameters
    ----------
    example_input
        As the file takes it.
    timer
        Of an int8 target.

    Raises
    ------
    ExportError
        The whole net is slower in integers.
    """
    twin, given = _twin_and_inputs(file, example_input, timer)
    where = str(timer.target)
    slower: dict[str, str] = {}
    gains: dict[str, float] = {}
    rows = rows_in(twin, places_of(twin))
    with evaluating(twin):
        values = twin.values(given, [row[0].reads[0] for row in rows])
    for row in rows:
        names, x = [step.name for step in row], values[row[0].reads[0]]
        chain = tuple(spec_of(twin.module_of(step), "") for step in row)
        time = timer.in_integers(chain, tuple(x.shape[2:] if chain[0].kernel else x.shape[1:-1]))
        if time:
            gains |= dict.fromkeys(names, time.dense - time.chain)
        if time and time.high < 1:
            told = f"{time.speedup:.2f}x in integers ({time.low:.2f}..{time.high:.2f}) on {where}"
            slower |= dict.fromkeys(names, told)
    whole = as_integers(file)
    if slower:
        mixed = as_integers(file, exclude=slower)
        if speedup(timer.target, whole, mixed, given).speedup > 1:
            whole = mixed
        else:
            slower = {}
    found = speedup(_in_float(timer), file, whole, given)
    if found.speedup_p90 < 1:
        raise ExportError(
            f"{file.name}: is slower in integers, {found.speedup:.2f}x "
            f"({found.speedup_p10:.2f}..{found.speedup_p90:.2f}) on {where}. For another machine "
            "give --int8 all."
        )
    return Timed(slower, gains)


def beside_float(file: Path, rounded: Path, example_input: Any, timer: LatencyModel) -> Speedup:
    """How much faster than a float file its form in integers is."""
    _, given = _twin_and_inputs(file, example_input, timer)
    return speedup(_in_float(timer), file, rounded, given)


def _twin_and_inputs(file: Path, example_input: Any, timer: LatencyModel) -> tuple[Twin, Any]:
    twin, _ = make_twin(read_onnx(file))
    return twin, batched(named_inputs(twin, example_input), timer.target.batch)


def _in_float(timer: LatencyModel) -> Target:
    return replace(timer.target, dtype="float32")
