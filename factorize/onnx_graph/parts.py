"""Parts of a twin that make one value of one, with a few of its layers in them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from factorize.onnx_graph.layers import LAYERS
from factorize.onnx_graph.twin import Nodes, Step, Twin


@dataclass(frozen=True)
class Span:
    """Nodes that lead from one value to another.

    Attributes
    ----------
    read, made
        Those values; the first layer reads the one.
    layers
        Names of the layers that are counted.
    """

    steps: tuple[Step, ...]
    layers: tuple[str, ...]
    read: str
    made: str


class Part(Nodes):
    """A span of a twin as a module; its own modules and constants are the twin's."""

    def __init__(self, twin: Twin, span: Span) -> None:
        held = twin.constants()
        reads = {name for step in span.steps for name in (*step.reads, *step.around) if name}
        super().__init__(
            span.steps,
            {step.name: twin.module_of(step) for step in span.steps if step.operator is None},
            {name: held[name] for name in sorted(reads & held.keys())},
        )
        self.onnx_read, self.onnx_made = span.read, span.made

    def forward(self, x: Tensor) -> Any:
        """Run the nodes."""
        values = self.constants() | {self.onnx_read: x}
        for step in self.onnx_steps:
            values.update(self.compute(step, values))
        return values[self.onnx_made]


def spans_of(twin: Twin, layers: Collection[str], most: int) -> Iterator[Span]:
    """Spans with up to `most` of the layers each, none of them in two.

    Each begins with a layer, takes in what is made of that layer's input alone, and ends, at the
    latest place, where a single value is all that nodes after it read; what follows its last layer
    is in it up to the next convolution or matrix.
    """
    left = set(layers)
    for place, first in enumerate(twin.onnx_steps):
        if first.name in left and first.layer and not first.layer.before:
            found = _longest(twin, twin.onnx_steps[place:], layers, most)
            if found is not None:
                left -= set(found.layers)
                yield found


def _longest(twin: Twin, steps: Sequence[Step], layers: Collection[str], most: int) -> Span | None:
    """The span that begins with the first of the steps."""
    known, read = twin.constants().keys(), steps[0].reads[0]
    inside: list[Step] = []
    own: list[str] = []
    made: set[str] = set()
    found: Span | None = None
    further = False  # whether there is a layer since it was found, but for one in a shortcut
    for number, step in enumerate(steps):
        needs = {*step.reads, *step.around} - known
        if not needs <= made | {read}:
            if needs & made:
                break  # joins what comes from elsewhere
            continue  # has nothing to do with it
        if step.name in layers:
            if len(own) == most:
                break
            own.append(step.name)
        further |= step.kind in LAYERS and not needs <= {read}
        inside.append(step)
        made.update(step.makes)
        later = {name for one in steps[number + 1 :] for name in (*one.reads, *one.around)}
        ends = made & {*later, *twin.outputs}
        if len(ends) == 1 and (found is None or len(own) > len(found.layers) or not further):
            found, further = Span(tuple(inside), tuple(own), read, ends.pop()), False
    return found
