"""Which axes of the inputs of an exported model are free: batch, height, width, ..."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

AXES = {3: ("length",), 4: ("height", "width"), 5: ("depth", "height", "width")}
"""Names of the axes behind batch and channels, by the number of axes."""

Places = frozenset[tuple[int, int]]
"""Axes: number of the input, number of its axis."""

_GROWTH = (3, 1, 2)  # steps that each axis grows by: not the same, so that none is mixed up


@dataclass(frozen=True)
class FreeAxis:
    """A size that a traced program leaves open. Several inputs may share it.

    Attributes
    ----------
    symbol
        Its name in the program.
    size
        That of the example.
    low, high
        The sizes that the program takes.
    step
        Sizes are the example's and multiples of this more or less.
    """

    name: str
    symbol: str
    size: int
    low: int
    high: int
    step: int = 1

    def grown(self, steps: int) -> int:
        """Another size: larger by some steps, smaller where the program ends before."""
        larger, smaller = self.size + steps * self.step, self.size - steps * self.step
        return larger if larger <= self.high or smaller < self.low else smaller


@dataclass(frozen=True)
class FreeAxes:
    """The axes of a program's inputs.

    Attributes
    ----------
    axes
        The free ones; the batch first.
    dims
        Of each input, each axis: its size, or an expression in a symbol.
    """

    axes: tuple[FreeAxis, ...]
    dims: tuple[tuple[Any, ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the free axes."""
        return tuple(dict.fromkeys(axis.name for axis in self.axes))

    @property
    def spatial(self) -> tuple[FreeAxis, ...]:
        """The free axes but the batch."""
        return tuple(axis for axis in self.axes if axis.name != "batch")

    def places(self) -> Places:
        """Where they are in the inputs."""
        free = {axis.symbol for axis in self.axes}
        return frozenset(
            (number, axis)
            for number, shape in enumerate(self.dims)
            for axis, dim in enumerate(shape)
            if free.issuperset(map(str, _symbols(dim))) and _symbols(dim)
        )

    def sizes(self, changed: Mapping[str, int]) -> list[tuple[int, ...]]:
        """Shapes of the inputs where some axes have another size, by name."""
        values = {axis.symbol: changed.get(axis.name, axis.size) for axis in self.axes}
        return [tuple(_value(dim, values) for dim in shape) for shape in self.dims]

    def second(self) -> dict[str, int]:
        """Sizes of the free axes but the batch, other than the example's."""
        return {
            axis.name: axis.grown(_GROWTH[i % len(_GROWTH)]) for i, axis in enumerate(self.spatial)
        }

    def words(self) -> str:
        """One line: what is free, and what is not."""
        free = dict.fromkeys(
            axis.name
            + (f" in steps of {axis.step}" if axis.step > 1 else "")
            + (f" up to {axis.high}" if axis.high < 2**31 - 1 else "")
            for axis in self.axes
        )
        fixed = [
            f"{name} {dim}"
            for shape in self.dims[:1]
            for name, dim in zip(axis_names(shape), shape, strict=True)
            if name and not _symbols(dim)
        ]
        parts = [f"any {', '.join(free)}"] if free else []
        return "; ".join([*parts, *([f"fixed {', '.join(fixed)}"] if fixed else [])])


def free_axes(program: Any, tensors: Mapping[str, Tensor], samples: int) -> FreeAxes:
    """Read the free axes of a ``torch.export.ExportedProgram``.

    torch fixes the axes that the model computes with as numbers, and ties those that must agree.
    """
    inputs = set(program.graph_signature.user_inputs)
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in inputs]
    dims = tuple(
        tuple(d if isinstance(d, int) else d.node.expr for d in node.meta["val"].shape)
        for node in nodes
    )
    axes: dict[str, FreeAxis] = {}
    ranges = {str(symbol): bounds for symbol, bounds in program.range_constraints.items()}
    taken: dict[str, int] = {}
    for shape, tensor in zip(dims, tensors.values(), strict=True):
        for name, dim, size in zip(axis_names(shape), shape, tensor.shape, strict=True):
            for symbol in _symbols(dim):
                if str(symbol) in axes:
                    continue
                taken[name] = taken.get(name, 0) + (name != "batch")  # it is one for all inputs
                called = f"{name}_{taken[name]}" if taken[name] > 1 else name
                factor = _value(dim, {str(symbol): 1})  # torch may write a multiple, as in 8*s1
                start = (samples if name == "batch" else size) // factor
                low, high = _bounds(ranges.get(str(symbol)))
                axes[str(symbol)] = FreeAxis(called, str(symbol), start, low, high)
    order = sorted(axes.values(), key=lambda axis: axis.name != "batch")
    return FreeAxes(tuple(order), dims)


def resized(
    tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]], generator: torch.Generator | None
) -> list[Tensor]:
    """Return tensors of other sizes: of random numbers, or with their own ones again."""

    def resize(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        if generator is not None and tensor.is_floating_point():
            return torch.randn(shape, generator=generator).to(tensor)
        for axis, size in enumerate(shape):
            tensor = tensor.index_select(axis, torch.arange(size) % tensor.shape[axis])
        return tensor

    return [resize(tensor, shape) for tensor, shape in zip(tensors, shapes, strict=True)]


def axis_names(shape: Sequence[Any]) -> tuple[str, ...]:
    """Names of the axes of an input; channels have none."""
    spatial = AXES.get(len(shape), ())
    others = ("" for _ in shape[1 : len(shape) - len(spatial)])
    return ("batch", *others, *spatial) if shape else ()


def _symbols(dim: Any) -> list[Any]:
    return sorted(getattr(dim, "free_symbols", ()), key=str)


def _value(dim: Any, values: Mapping[str, int]) -> int:
    for symbol in _symbols(dim):
        dim = dim.subs(symbol, values[str(symbol)])
    return int(dim)


def _bounds(bounds: Any) -> tuple[int, int]:
    """The least and the greatest size of a range that may be open."""
    found = []
    for bound, end in ((getattr(bounds, "lower", 1), 1), (getattr(bounds, "upper", 2**62), 2**62)):
        try:
            found.append(int(bound))
        except (TypeError, ValueError, OverflowError, AttributeError):  # without end
            found.append(end)
    return found[0], min(found[1], 2**62)
