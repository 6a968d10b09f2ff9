"""Times of the chains of a layer: some of each kind are measured, the others lie between them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from factorize.measure import Chain, ChainTime, LatencyModel, between
from factorize.spec import ConvSpec

FEW, KNOTS = 4, 3
"""Chains of a kind that are measured at once: all where they are few, else some, the cheapest and
the dearest among them. At ranks on one step of the hardware time is close to a line in the MACs."""


@dataclass(frozen=True)
class Timed:
    """What is known of a chain's time in all places of its layer.

    Attributes
    ----------
    total
        Over all places.
    faster
        Whether it is faster than the layer beyond the noise, in each place.
    estimated
        Whether it was not measured itself.
    """

    total: ChainTime
    faster: bool
    estimated: bool = False


class ChainTimes:
    """Times chains for convolutions that share a weight.

    Attributes
    ----------
    dense
        Time of the convolutions as they are, known once chains were timed.
    """

    def __init__(self, latency: LatencyModel, specs: Sequence[ConvSpec]) -> None:
        self.latency, self.specs, self.dense = latency, specs, 0.0

    def of(self, chains: Sequence[Sequence[Chain]]) -> list[Timed | None]:
        """Measure chains, each with one for each convolution; None for what is refused."""
        places = [
            self.latency.times(spec, [*(made[place] for made in chains), (spec,)])
            for place, spec in enumerate(self.specs)
        ]
        *timed, whole = zip(*places, strict=True)
        self.dense = sum(one.dense for one in whole if one)
        found: list[Timed | None] = []
        for times in timed:
            known = [one for one in times if one]
            whole_chain = len(known) == len(times)
            all_faster = all(one.faster for one in known)
            found.append(Timed(reduce(add, known), all_faster) if whole_chain else None)
        return found

    def of_kinds(
        self, chains: Sequence[Sequence[Chain]], kinds: Sequence[Hashable]
    ) -> list[Timed | None]:
        """Measure some of each kind, and estimate the others; None where all are refused."""
        macs = [sum(stage.macs for chain in made for stage in chain) for made in chains]
        members: dict[Hashable, list[int]] = {}
        for index in sorted(range(len(chains)), key=macs.__getitem__):
            members.setdefault(kinds[index], []).append(index)
        knots = [index for of_kind in members.values() for index in _spread(of_kind)]
        measured = dict(zip(knots, self.of([chains[index] for index in knots]), strict=True))
        found: list[Timed | None] = [measured.get(index) for index in range(len(chains))]
        for of_kind in members.values():
            known = [(macs[i], one.total) for i in of_kind if (one := measured.get(i))]
            for index in of_kind if known else ():
                if index not in measured:
                    total = between(known, macs[index])
                    found[index] = Timed(total, total.faster, estimated=True)
        return found


def _spread(indices: Sequence[int]) -> list[int]:
    if len(indices) <= FEW:
        return list(indices)
    at = np.linspace(0, len(indices) - 1, KNOTS).round().astype(int)
    return [indices[position] for position in at]
