"""What a search would like to know the times of, found by searching on a device made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from factorize.measure.cache import NumberCache
from factorize.measure.interleave import Chain, ChainTime
from factorize.measure.latency_model import LatencyModel, text_of
from factorize.measure.runtimes import Target
from factorize.spec import ConvSpec, Size


class Wanted(LatencyModel):
    """Notes the chains that it is asked for; on its device time is MACs, in steps of channels.

    Attributes
    ----------
    chains
        By layer and the size of its input.
    """

    def __init__(self, target: Target, step: int) -> None:
        super().__init__(target, NumberCache(None))
        self.step = step
        self.chains: dict[tuple[ConvSpec, Size], list[Chain]] = {}

    def _found(self, spec: ConvSpec, size: Size, chains: Sequence[Chain]) -> list[ChainTime | None]:
        place = replace(spec, name="", input_sizes=()), size
        self.chains.setdefault(place, []).extend(chains)
        dense = self._time((spec,), size)
        times = [self._time(chain, size) for chain in chains]
        return [ChainTime(dense, t, dense / t, dense / t, dense / t) for t in times]

    def _time(self, chain: Chain, size: Size) -> float:
        total = 0.0
        for index, stage in enumerate(chain):
            size = stage.output_size(size)
            work = prod(stage.weight_shape) * prod(size)
            if index > 0:  # what is between the stages of a chain is whole steps of channels
                work *= self._stepped(stage.in_channels)
            if index < len(chain) - 1:
                work *= self._stepped(stage.out_channels)
            total += work + 1
        return total

    def _stepped(self, channels: int) -> float:
        return -(-channels // self.step) * self.step / channels


def kind_of(chain: Chain) -> str:
    """What chains have in common that differ in rank alone."""
    return " > ".join(
        f"{s.kind} k{s.kernel} s{s.stride} d{s.dilation} w{s.group_inputs if s.groups > 1 else 0}"
        for s in chain
    )


def macs_at(chain: Chain, size: Size) -> int:
    """MACs of a chain for one input of that size."""
    total = 0
    for stage in chain:
        before, size = size, stage.output_size(size)
        total += prod(stage.weight_shape) * prod(before if stage.transposed else size)
    return total


def layer_text(spec: ConvSpec, size: Size) -> str:
    """A layer and the size of its input."""
    return f"{text_of((spec,))} @ {size}"
