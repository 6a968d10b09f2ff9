"""The latency model: the time of chains of convolutions beside the dense layer they replace."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import comb, prod

import numpy as np

from factorize import methods
from factorize.errors import DeviceError
from factorize.measure.cache import LatencyCache
from factorize.measure.onnx_chain import chain_model
from factorize.measure.target import Target
from factorize.types import ConvSpec, Plan, Size

Chain = tuple[ConvSpec, ...]
Run = Callable[[], float]

REFERENCE = ConvSpec("", "conv2d", 64, 64, (3, 3), (1, 1), (1, 1), (1, 1))
REFERENCE_SIZE = (56, 56)
NOTHING = ConvSpec("", "conv2d", 1, 1, (1, 1), (1, 1), (0, 0), (1, 1), bias=False)
SCHEME = 1  # of timing: times of another one are not comparable
DENSE = 2  # its place among the runs of a group
_ROUNDS = 21  # each runs every chain once
_FEWEST = 9
_WARMUP = 3  # rounds
_SECONDS = 3.0  # of rounds, for one group of chains
_HOPELESS = 1.5  # times as slow as the dense layer in the warm-up: no more rounds
_MEMORY = 1e9  # bytes of the chains that are timed together
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class ChainTime:
    """A chain by itself beside the dense layer, per batch, over all calls.

    Times are in units of the `REFERENCE` layer's, run beside them: the speed of a machine changes
    from minute to minute, by a factor of two on a shared one, and leaves such ratios as they are.

    Attributes
    ----------
    dense, chain
        Medians over the rounds.
    speedup, low, high
        Median of the rounds' dense / chain; its bounds with 95 % confidence, by order statistics.
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


class LatencyModel:
    """Times of layers on one target: each distinct (chain, input size) is measured once.

    All chains of a layer and the dense layer are run in rounds, one call of each per round in
    changing order, on one input: what slows the machine slows all, and what a chain reads from
    memory in a net, its weights, it has to read from memory here too.

    Parameters
    ----------
    refresh
        Measure anew what the cache holds; the cache then holds that.

    Attributes
    ----------
    timed, cached
        How many distinct (chain, input size) were measured, and how many were in the cache.
    """

    def __init__(self, target: Target, cache: LatencyCache, *, refresh: bool = False) -> None:
        self.target = target
        self.cache = cache
        self.refresh = refresh
        self.timed = 0
        self.cached = 0
        self._context = {"scheme": SCHEME, **target.context()}
        self._known: dict[str, dict[str, float]] = {}

    def times(self, spec: ConvSpec, chains: Sequence[Chain]) -> list[ChainTime | None]:
        """Time chains that replace a layer; None for one that the runtime refuses.

        Parameters
        ----------
        spec
            The layer, with the input sizes of all its calls.
        chains
            The stages of each chain. The layer itself, ``(spec,)``, may be among them.
        """
        totals: list[ChainTime | None] = [None] * len(chains)
        for call, size in enumerate(spec.input_sizes):
            for index, found in enumerate(self._at_size(spec, size, chains)):
                if call == 0:
                    totals[index] = found
                else:
                    totals[index] = _sum(totals[index], found)
        return totals

    def of_plan(
        self, plan: Plan, offered: Mapping[str, Chain] | None = None
    ) -> dict[str, dict[str, float]]:
        """What the report says of layers: times in ms, and bounds of their ratio.

        Parameters
        ----------
        offered
            Chains that layers which stay dense could have had.
        """
        wanted = {layer.spec: methods.chain_of(layer) for layer in plan.factorized}
        for layer in plan.layers:
            if not layer.method and layer.spec.name in (offered or {}):
                wanted[layer.spec] = (offered or {})[layer.spec.name]
        found = {spec: self.times(spec, [chain])[0] for spec, chain in wanted.items()}
        unit_ms = in_units(self.target, reference(self.target))[1]
        return {
            spec.name: {
                "ms_original": time.dense * unit_ms,
                "ms": time.chain * unit_ms,
                "speedup_low": time.low,
                "speedup_high": time.high,
            }
            for spec, time in found.items()
            if time
        }

    def _at_size(
        self, spec: ConvSpec, size: Size, chains: Sequence[Chain]
    ) -> list[ChainTime | None]:
        dense = _text((spec,))
        keys = [f"{dense} @ {size} : {_text(chain)}" for chain in chains]
        wanted = [key for key in dict.fromkeys(keys) if key not in self._known]
        if wanted and not self.refresh:
            stored = self.cache.get(self._context, wanted)
            self._known |= stored
            self.cached += len(stored)
        missing = {
            key: chain for key, chain in zip(keys, chains, strict=True) if key not in self._known
        }
        if missing:
            found = _measure(self.target, (spec,), list(missing.values()), size)
            entries = {
                key: asdict(one) if one else {"refused": 1.0}
                for key, one in zip(missing, found, strict=True)
            }
            self.cache.put(self._context, entries)
            self._known |= entries
            self.timed += len(entries)
        return [None if "refused" in e else ChainTime(**e) for e in map(self._known.get, keys)]  # type: ignore[arg-type, operator]


def in_units(target: Target, run: Run) -> tuple[float, float]:
    """How long a run takes in units of the reference, and milliseconds per unit."""
    unit, nothing = reference(target), overhead(target)
    for _ in range(_WARMUP):
        unit()
        run()
    columns = np.array([(nothing(), unit(), run()) for _ in range(_ROUNDS)]).T
    units, runs = _net(columns[0], columns[1:])
    return float(np.median(runs / units)), float(np.median(units))


def reference(target: Target) -> Run:
    """Runs the unit of time once: one layer of middling size, one image.

    Raises
    ------
    DeviceError
        Not even that runs on the target.
    """
    run = runners(replace(target, batch=1), [(REFERENCE,)], REFERENCE_SIZE)[0]
    if run is None:
        raise DeviceError(
            f"--target {target}: a plain convolution must run on it, and fails. Check the "
            "installation of onnxruntime or torch."
        )
    return run


def overhead(target: Target) -> Run:
    """Runs what a call costs beside its work, which a net pays once and not for each layer."""
    if target.runtime != "onnxruntime":  # eager layers are called one by one
        return lambda: 0.0
    return runners(target, [(NOTHING,)], (1, 1))[0] or (lambda: 0.0)


def _net(nothing: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Times (runs, rounds) without the overhead (rounds,)."""
    return np.maximum(times - np.median(nothing), 0.05 * times)


def _measure(
    target: Target, dense: Chain, chains: Sequence[Chain], size: Size
) -> list[ChainTime | None]:
    """Time chains in groups that fit in memory, each beside the dense layer."""
    found: list[ChainTime | None] = []
    group: list[Chain] = []
    for chain in chains:
        if group and sum(_bytes(c, size, target.batch) for c in (*group, chain)) > _MEMORY:
            found += _measure_group(target, dense, group, size)
            group = []
        group.append(chain)
    return found + _measure_group(target, dense, group, size)


def _measure_group(
    target: Target, dense: Chain, chains: Sequence[Chain], size: Size
) -> list[ChainTime | None]:
    runs = [overhead(target), reference(target), *runners(target, [dense, *chains], size)]
    if runs[DENSE] is None:
        return [None] * len(chains)
    times = _rounds(runs)
    found: list[ChainTime | None] = []
    for run, column in zip(runs[DENSE + 1 :], times[DENSE + 1 :], strict=True):
        if run is None:
            found.append(None)
            continue
        rounds = zip(*times[: DENSE + 1], column, strict=True)
        nothing, *rest = np.array([row for row in rounds if row[-1] > 0]).T
        unit, whole, part = _net(nothing, np.array(rest))
        ratios = np.sort(whole / part)
        low, high = _bounds(len(ratios))
        numbers = np.median(whole / unit), np.median(part / unit), np.median(ratios)
        found.append(ChainTime(*map(float, (*numbers, ratios[low], ratios[high]))))
    return found


def _rounds(runs: Sequence[Run | None]) -> list[list[float]]:
    """Milliseconds of each run in each round; 0 in rounds that a hopeless one was left out of.

    The first runs are the overhead, the reference and the dense layer.
    """
    active = [index for index, run in enumerate(runs) if run]
    first: list[list[float]] = [[] for _ in runs]
    order = np.random.default_rng(0)
    for _ in range(_WARMUP):
        for index in order.permutation(active):
            first[index].append(runs[index]())  # type: ignore[misc]
    # Two rounds are on record for one that is hopeless: it is slower, and that is all.
    best = {index: min(first[index][1:]) for index in active}
    hopeless = [i for i in active if i > DENSE and best[i] > _HOPELESS * best[DENSE]]
    active = [index for index in active if index not in hopeless]
    spent = sum(best[index] for index in active) / 1e3
    rounds = int(min(max(_SECONDS / max(spent, 1e-9), _FEWEST), _ROUNDS))
    times = [[0.0] * (rounds + _WARMUP - 1) for _ in runs]  # those of the warm-up come last
    for index in (*range(DENSE + 1), *hopeless):
        times[index][rounds:] = first[index][1:]
    for number in range(rounds):
        for index in order.permutation(active):
            times[index][number] = runs[index]()  # type: ignore[misc]
    return times


def _bounds(count: int) -> tuple[int, int]:
    """Which order statistics bound the median with 95 % confidence (a sign test)."""
    below, rank = 0.0, 0
    while rank < (count - 1) // 2:
        below += comb(count, rank) / 2**count
        if 2 * below > 1 - _CONFIDENCE:
            break
        rank += 1
    rank = max(rank - 1, 0)
    return rank, count - 1 - rank


def runners(target: Target, chains: Sequence[Chain], size: Size) -> list[Run | None]:
    """A function per chain that runs it once and returns milliseconds; None: refused."""
    if target.runtime == "onnxruntime":
        return _onnx_runners(target, chains, size)
    from factorize.measure.torch_chain import torch_runners

    return torch_runners(target, chains, size)


def _onnx_runners(target: Target, chains: Sequence[Chain], size: Size) -> list[Run | None]:
    from factorize.tensor.call import onnx_session

    channels = chains[0][0].in_channels
    x = np.random.default_rng(0).standard_normal((target.batch, channels, *size))
    x = x.astype(np.float32)

    def runner(chain: Chain) -> Run | None:
        try:
            session = onnx_session(chain_model(chain, size, target.batch), target.threads)
            binding = session.io_binding()  # no copy of the output to numpy is timed
            binding.bind_cpu_input("x", x)
            binding.bind_output(session.get_outputs()[0].name)
            session.run_with_iobinding(binding)
        except Exception:  # the runtime has dozens: whatever it is, the chain cannot be run
            return None

        def run() -> float:
            start = time.perf_counter()
            session.run_with_iobinding(binding)
            return 1e3 * (time.perf_counter() - start)

        return run

    return [runner(chain) for chain in chains]


def _bytes(chain: Chain, size: Size, batch: int) -> int:
    """Of the weights, twice, and of what the chain writes."""
    written = 0
    for stage in chain:
        size = stage.output_size(size)
        written += batch * stage.out_channels * prod(size)
    return 4 * (2 * sum(stage.params for stage in chain) + written)


def _sum(one: ChainTime | None, two: ChainTime | None) -> ChainTime | None:
    """Both calls of a layer; the bounds of the speedup weighed by the chain's times."""
    if one is None or two is None:
        return None
    chain = one.chain + two.chain
    ratios = [
        (one.chain * a + two.chain * b) / chain
        for a, b in ((one.speedup, two.speedup), (one.low, two.low), (one.high, two.high))
    ]
    return ChainTime(one.dense + two.dense, chain, *ratios)


def _text(chain: Chain) -> str:
    """A chain's shapes, without names and sizes."""
    return " > ".join(
        f"{s.kind} {s.in_channels}-{s.out_channels} k{s.kernel} s{s.stride} p{s.padding} "
        f"d{s.dilation} g{s.groups} {s.padding_mode}{' bias' if s.bias else ''}"
        for s in chain
    )
