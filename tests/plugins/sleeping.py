"""A runtime from outside of the package, in one file: it sleeps a second for 10^11 MACs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from factorize.measure import Runtime, Target, count, runtimes
from factorize.measure.runtimes.base import Chain, Run
from factorize.spec import Size

SECONDS_PER_MAC = 1e-11


class Sleeping(Runtime):
    """Tells how long it meant to sleep: its times are the same on every machine."""

    name = "sleeping"
    summary = "sleeps in proportion to the MACs"
    package = "factorize"
    reads = "module"

    def chain_runs(self, target: Target, chains: Sequence[Chain], size: Size) -> list[Run | None]:
        first = chains[0][0]
        return [
            partial(sleep, target.batch * macs(chain, size))
            if fits(chain, first.in_channels)
            else None
            for chain in chains
        ]

    @contextmanager
    def net_runs(
        self, target: Target, nets: Sequence[nn.Module], example_input: Any
    ) -> Iterator[list[Run]]:
        yield [partial(sleep, target.batch * count(net, example_input)[1]) for net in nets]


def sleep(macs: int) -> float:
    seconds = SECONDS_PER_MAC * max(macs, 1)
    time.sleep(seconds)
    return 1e3 * seconds


def macs(chain: Chain, size: Size) -> int:
    total = 0
    for stage in chain:
        total += replace(stage, input_sizes=(size,)).macs
        size = stage.output_size(size)
    return total


def fits(chain: Chain, channels: int) -> bool:
    for stage in chain:
        if stage.in_channels != channels:
            return False
        channels = stage.out_channels
    return True


runtimes.register(Sleeping())
