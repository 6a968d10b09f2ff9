"""Which layers of a file are slower in integers than in float, on the target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from factorize.errors import ExportError
from factorize.graph.spec_of import spec_of
from factorize.measure import Chain, LatencyModel, speedup
from factorize.measure.runtimes.running import batched
from factorize.onnx_graph import Twin, make_twin, read_onnx
from factorize.quantize import as_integers
from factorize.quantize.places import Places, places_of, readers_of
from factorize.quantize.source import named_inputs
from factorize.spec import Size
from factorize.tensor.call import evaluating


def slower_in_integers(file: Path, example_input: Any, timer: LatencyModel) -> dict[str, str]:
    """Names of layers that are to stay in float, each with the reason.

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
    twin, _ = make_twin(read_onnx(file))
    where, given = str(timer.target), named_inputs(twin, example_input)
    given = batched(given, timer.target.batch)
    slower: dict[str, str] = {}
    for names, chain, size in _rows(twin, places_of(twin), given):
        time = timer.in_integers(chain, size)
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
    found = speedup(replace(timer.target, dtype="float32"), file, whole, given)
    if found.speedup_p90 < 1:
        raise ExportError(
            f"{file.name}: is slower in integers, {found.speedup:.2f}x "
            f"({found.speedup_p10:.2f}..{found.speedup_p90:.2f}) on {where}. For another machine "
            "give --int8 all."
        )
    return slower


def _rows(twin: Twin, places: Places, given: Any) -> Iterator[tuple[tuple[str, ...], Chain, Size]]:
    """Layers in integers that nothing stands between, as a chain, and the size of its input."""
    readers = readers_of(twin)
    steps = {step.name: step for step in twin.onnx_steps}
    layers = [steps[name] for name in places.layers]
    inner = {step.name for one in layers if (step := _next(one, readers, places))}
    with evaluating(twin):
        values = twin.values(given, [step.reads[0] for step in layers])
    for first in layers:
        if first.name in inner:
            continue
        row = [first]
        while (step := _next(row[-1], readers, places)) is not None:
            row.append(step)
        x = values[first.reads[0]]
        chain = tuple(spec_of(twin.module_of(step), "") for step in row)
        size = tuple(x.shape[2:] if chain[0].kernel else x.shape[1:-1])
        yield tuple(step.name for step in row), chain, size


def _next(step: Any, readers: Any, places: Places) -> Any:
    """The layer of the same kind that alone reads what one makes."""
    after = readers[step.makes[0]]
    if len(after) != 1:
        return None
    alike = after[0].name in places.layers and after[0].kind == step.kind
    return after[0] if alike and after[0].reads[0] == step.makes[0] else None
