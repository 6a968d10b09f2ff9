"""A layer's loss by its MACs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import inf

from torch import Tensor

from factorize import methods
from factorize.methods import Method
from factorize.spec import ConvSpec, Rank

LEAST = 1e-9  # relative squared error; below, there is nothing to lose

Family = tuple[int, ...]
Key = tuple[str, str, Family]
"""Method, variant, and what of the rank does not grow with it (`family_of`)."""


@dataclass(frozen=True)
class Curve:
    """A layer's loss by its MACs, exponential between points and beyond them; it never rises.

    Attributes
    ----------
    family
        Entries of the rank that are the same in all points, such as the width of groups.
    macs
        Of the points, ascending.
    error
        Relative squared error of the output, or another loss.
    most
        What the loss cannot exceed, and is without MACs.
    """

    method: str
    variant: str
    family: Family
    macs: tuple[int, ...]
    error: tuple[float, ...]
    most: float = 1.0

    @property
    def key(self) -> Key:
        """What tells it from the others of its layer."""
        return self.method, self.variant, self.family

    def at(self, macs: float) -> float:
        """The loss at some MACs."""
        if macs in self.macs:
            return self.error[self.macs.index(int(macs))]
        points = list(zip(self.macs, self.error, strict=True))
        if self.most < inf:
            points.insert(0, (0, self.most))
        elif len(points) == 1:
            return self.error[0]
        sections = list(pairwise(points))
        (x0, y0), (x1, y1) = next((s for s in sections if macs <= s[1][0]), sections[-1])
        return y0 * (y1 / y0) ** ((macs - x0) / (x1 - x0))


@dataclass(frozen=True)
class Fit:
    """What a chain was found to lose on a layer.

    Attributes
    ----------
    key
        Of the curve that it is a point of; None where it only probes the layer.
    error
        Relative squared error of the layer's output.
    kernel
        None: the error is known without one.
    bias
        The layer's, to go with the kernel; None: as it was.
    """

    key: Key | None
    macs: int
    error: float
    kernel: Tensor | None = None
    bias: Tensor | None = None


def macs_of(spec: ConvSpec, key: Key, rank: Rank) -> int:
    """MACs of a chain."""
    return sum(stage.macs for stage in methods.get(key[0]).stages(spec, rank, key[1]))


def curve_through(key: Key, points: Mapping[int, float], most: float = 1.0) -> Curve:
    """The curve through losses by the MACs.

    What more MACs do not lower, by the chance of a fit, stays where it was.
    """
    macs, lowest = sorted(points), inf
    errors = [lowest := min(lowest, max(points[x], LEAST)) for x in macs]
    return Curve(*key, tuple(macs), tuple(errors), most)


def family_of(method: Method, spec: ConvSpec, rank: Rank) -> Family:
    """The entries of a rank that do not grow with it, such as the width of groups."""
    beyond = max(method.max_rank(spec)) + 1
    free = method.rank_of(beyond, spec)
    return tuple(value for value, top in zip(rank, free, strict=True) if top != beyond)
