"""Chains of convolutions run in turns beside the layer they replace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import comb, prod

import numpy as np

from factorize.errors import DeviceError
from factorize.measure import runtimes
from factorize.measure.runtimes.base import Chain, Run, Target
from factorize.spec import ConvSpec, Size

REFERENCE = ConvSpec("", "conv2d", 64, 64, (3, 3), (1, 1), (1, 1), (1, 1))
REFERENCE_SIZE = (56, 56)
_TURNS = 21  # each runs every chain once
_FEWEST = 9
_WARMUP = 3  # turns
_SECONDS = 3.0  # of turns, for one group of chains
_HOPELESS = 1.5  # times as slow as the dense layer in the warm-up: no more turns
_MEMORY = 1e9  # bytes of the chains that are timed together
_CONFIDENCE = 0.95
_BOUNDED = 6  # turns: the extremes of fewer do not bound a median with that confidence

WIDE = 2.0
"""Upper over lower bound of a speedup beyond which it was not measured: on a quiet machine they
are within a few percent, and chains that are worth anything differ by less than this."""


@dataclass(frozen=True)
class ChainTime:
    """A chain by itself beside the dense layer, per batch, over all calls.

    Times are in units of the `REFERENCE` layer's, run beside them: the speed of a machine changes
    from minute to minute, by a factor of two on a shared one, and leaves such ratios as they are.

    Attributes
    ----------
    dense, chain
        Medians over the turns.
    speedup, low, high
        Median of the turns' dense / chain; its bounds with 95 % confidence, by order statistics.
    """

    dense: float
    chain: float
    speedup: float
    low: float
    high: float

    @property
    def faster(self) -> bool:
        """Whether the chain is faster than the dense layer by more than the noise."""
        return self.low > 1

    @property
    def steady(self) -> bool:
        """Whether it is known well enough to be kept for later runs."""
        return self.high <= WIDE * self.low

    def __add__(self, other: ChainTime) -> ChainTime:
        """Both calls of a layer; speedup and bounds are weighed by the chain's times."""
        chain = self.chain + other.chain
        ratios = (
            (self.chain * a + other.chain * b) / chain
            for a, b in (
                (self.speedup, other.speedup), (self.low, other.low), (self.high, other.high)
            )
        )  # fmt: skip
        return ChainTime(self.dense + other.dense, chain, *ratios)


def between(known: Sequence[tuple[int, ChainTime]], macs: int) -> ChainTime:
    """On the line between measured neighbours in MACs; as uncertain as these are.

    Parameters
    ----------
    known
        Chains of one kind and their MACs, ascending.
    """
    at = [size for size, _ in known]
    chain, low, high = (
        float(np.interp(macs, at, values))
        for values in (
            [one.chain for _, one in known],
            [one.low / one.speedup for _, one in known],
            [one.high / one.speedup for _, one in known],
        )
    )
    dense = known[0][1].dense
    speedup = dense / chain
    return ChainTime(dense, chain, speedup, low * speedup, high * speedup)


def time_chains(
    target: Target, dense: Chain, chains: Sequence[Chain], size: Size
) -> list[ChainTime | None]:
    """Time chains in groups that fit in memory, each beside the dense layer.

    Returns
    -------
    list
        For each chain; None where the target refuses it.
    """
    copies = runtimes.get(target.runtime).copies(target, dense[0], size)
    found: list[ChainTime | None] = []
    group: list[Chain] = []
    for chain in chains:
        needed = sum(copies * _bytes(one, size, target.batch) for one in (*group, chain))
        if group and needed > _MEMORY:
            found += _time_group(target, dense, group, size, copies)
            group = []
        group.append(chain)
    return found + _time_group(target, dense, group, size, copies)


def beside_float(target: Target, chain: Chain, size: Size) -> ChainTime | None:
    """A chain on an int8 target (``chain``) beside the same one in float32 there (``dense``).

    Returns
    -------
    None where either is refused.
    """
    runtime, exact = runtimes.get(target.runtime), replace(target, dtype="float32")
    [one], [other] = (runtime.chain_runs(how, [chain], size) for how in (exact, target))
    if one is None or other is None:
        return None
    copies = runtime.copies(target, chain[0], size)
    return _chain_time(_in_turns([reference(target), one, other], copies))


def in_units(target: Target, run: Run) -> tuple[float, float]:
    """How long a run takes in units of the reference, and milliseconds per unit."""
    unit, beside = reference(target), runtimes.get(target.runtime).overhead(target)
    for _ in range(_WARMUP):
        unit()
        run()
    pairs = [(unit(), max(run() - beside, 0.5 * beside)) for _ in range(_TURNS)]
    units, runs = np.array(pairs).T
    return float(np.median(runs / units)), float(np.median(units))


def reference(target: Target) -> Run:
    """Runs the unit of time once: one layer of middling size, one image.

    Raises
    ------
    DeviceError
        Not even that runs on the target.
    """
    runtime = runtimes.get(target.runtime)
    [run] = runtime.chain_runs(replace(target, batch=1), [(REFERENCE,)], REFERENCE_SIZE)
    if run is None:
        raise DeviceError(
            f"--target {target}: a plain convolution must run on it, and fails. Check the "
            f"installation of {runtime.package}."
        )
    return run


def _time_group(
    target: Target, dense: Chain, chains: Sequence[Chain], size: Size, copies: int
) -> list[ChainTime | None]:
    runtime = runtimes.get(target.runtime)
    runs = [reference(target), *runtime.chain_runs(target, [dense, *chains], size)]
    if runs[1] is None:
        return [None] * len(chains)
    times = _in_turns(runs, copies)
    found: list[ChainTime | None] = []
    for run, column in zip(runs[2:], times[2:], strict=True):
        if run is None:
            found.append(None)
            continue
        found.append(_chain_time([*times[:2], column]))
    return found


def _chain_time(columns: Sequence[Sequence[float]]) -> ChainTime:
    """Milliseconds of the reference, the dense layer and the chain by turn, 0 where left out."""
    turns = np.array([row for row in zip(*columns, strict=True) if row[2] > 0])
    unit, whole, part = turns.T
    ratios = np.sort(whole / part)
    low, high = median_bounds(len(ratios))
    numbers = np.median(whole / unit), np.median(part / unit), np.median(ratios)
    return ChainTime(*map(float, (*numbers, ratios[low], ratios[high])))


def _in_turns(runs: Sequence[Run | None], copies: int) -> list[list[float]]:
    """Milliseconds of each run in each turn; 0 in turns that a hopeless one was left out of.

    The first run is the reference, the second the dense layer.
    """
    active = [index for index, run in enumerate(runs) if run]
    first: list[list[float]] = [[] for _ in runs]
    order = np.random.default_rng(0)
    for _ in range(_WARMUP):
        for index in order.permutation(active):
            first[index].append(runs[index]())  # type: ignore[misc]
    # A hopeless one is slower, and that is all: it gets no more turns than its bounds need, spread
    # over the others, so that no single disturbance makes a chain hopeless.
    best = {index: min(first[index][1:]) for index in active}
    hopeless = [i for i in active if i > 1 and best[i] > _HOPELESS * best[1]]
    active = [index for index in active if index not in hopeless]
    spent = copies * sum(best[index] for index in active) / 1e3
    turns = int(min(max(_SECONDS / max(spent, 1e-9), _FEWEST), _TURNS))
    times = [[0.0] * (turns + _WARMUP - 1) for _ in runs]  # those of the warm-up come last
    for index in (0, 1, *hopeless):
        times[index][turns:] = first[index][1:]
    apart = turns // (_BOUNDED - len(first[1][1:]))
    for number in range(turns):
        for index in order.permutation(active if number % apart else active + hopeless):
            times[index][number] = runs[index]()  # type: ignore[misc]
    return times


def median_bounds(count: int) -> tuple[int, int]:
    """Which order statistics bound the median with 95 % confidence (a sign test)."""
    below, rank = 0.0, 0
    while rank < (count - 1) // 2:
        below += comb(count, rank) / 2**count
        if 2 * below > 1 - _CONFIDENCE:
            break
        rank += 1
    rank = max(rank - 1, 0)
    return rank, count - 1 - rank


def _bytes(chain: Chain, size: Size, batch: int) -> int:
    """Of the weights, twice, and of what the chain writes."""
    written = 0
    for stage in chain:
        size = stage.output_size(size)
        written += batch * stage.out_channels * prod(size)
    return 4 * (2 * sum(stage.params for stage in chain) + written)
