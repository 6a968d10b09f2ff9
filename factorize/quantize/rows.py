"""Layers in integers that nothing stands between, as the stages of a chain."""

from __future__ import annotations

from collections import defaultdict

from factorize.onnx_graph import Twin
from factorize.onnx_graph.twin import Step
from factorize.quantize.places import Places, readers_of

Row = tuple[Step, ...]


def rows_in(twin: Twin, places: Places) -> list[Row]:
    """All layers in integers, those in a row together."""
    readers = readers_of(twin)
    steps = {step.name: step for step in twin.onnx_steps}
    layers = [steps[name] for name in places.layers]
    inner = {step.name for one in layers if (step := _next(one, readers, places))}
    rows = []
    for first in layers:
        if first.name in inner:
            continue
        row = [first]
        while (step := _next(row[-1], readers, places)) is not None:
            row.append(step)
        rows.append(tuple(row))
    return rows


def _next(step: Step, readers: defaultdict[str, list[Step]], places: Places) -> Step | None:
    """The layer of the same kind that alone reads what one makes."""
    after = readers[step.makes[0]]
    if len(after) != 1:
        return None
    alike = after[0].name in places.layers and after[0].kind == step.kind
    return after[0] if alike and after[0].reads[0] == step.makes[0] else None
