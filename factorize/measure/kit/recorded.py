"""Times that bench.py took on a device far away, as a target, and as times of layers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from factorize import methods
from factorize.errors import DataError
from factorize.measure.cache import NumberCache
from factorize.measure.interleave import Chain, ChainTime, between
from factorize.measure.kit.times_file import Times, read_times
from factorize.measure.kit.wanted import kind_of, layer_text, macs_at
from factorize.measure.latency_model import LatencyModel, key_of, text_of
from factorize.measure.runtimes import Target
from factorize.measure.runtimes.recorded import NAME
from factorize.spec import ConvSpec, Size
from factorize.types import ConvSite, LayerPlan, Plan


@dataclass(frozen=True)
class Recorded(Target):
    """A target that is not here: what is known of it is what its files say."""

    runtime: str = NAME
    times: Times = field(kw_only=True, compare=False, repr=False)

    def __post_init__(self) -> None:
        pass  # none of it is on this machine

    def __str__(self) -> str:
        threads = f"{self.threads} thread" + "s" * (self.threads != 1)
        return f"{self.times.device}, {threads}, batch {self.batch}"

    def context(self) -> dict[str, Any]:  # noqa: D102
        return {
            "runtime": self.times.runtime, "threads": self.threads, "batch": self.batch,
            "dtype": self.dtype, "compiled": False, "times": self.times.source,
            **self.times.machine,
        }  # fmt: skip


def load_times(*paths: Any) -> Recorded:
    """The device that ``times.json`` is of, to search for: ``compress(..., target=...)``.

    Parameters
    ----------
    paths
        Of one device and one net: of a kit's chains, and of a kit's nets.

    Raises
    ------
    DataError
        A file cannot be read, or they are of different devices or nets.
    """
    times = read_times(paths)
    return Recorded(threads=times.threads, batch=times.batch, times=times)


def shape_of_net(sites: Sequence[ConvSite]) -> str:
    """What tells a net's convolutions from those of others: shapes and sizes, not weights."""
    shapes = [layer_text(s.spec, size) for s in sites for size in s.spec.input_sizes]
    return hashlib.sha256("\n".join(shapes).encode()).hexdigest()[:12]


def _dense_of(times: Times) -> dict[str, float]:
    """Times of layers as they are: medians over all that was timed beside them."""
    found: dict[str, list[float]] = {}
    for key, one in times.chains.items():
        if one.time is not None:
            found.setdefault(key.partition(" : ")[0], []).append(one.time.dense)
    return {layer: median(values) for layer, values in found.items()}


class RecordedTimes(LatencyModel):
    """Times of layers from a file; of chains that it lacks, between those of their kind.

    What costs more than all that was timed of its kind is as if refused, so that no layer becomes
    slower by a guess.

    Attributes
    ----------
    recorded
        What the files say.
    """

    def __init__(self, target: Recorded) -> None:
        super().__init__(target, NumberCache(None, of="recorded times"))
        self.recorded = target.times
        self._guessed: set[str] = set()
        entries: dict[str, Mapping[str, float]] = {}
        self._kinds: dict[tuple[str, str], list[tuple[int, ChainTime]]] = {}
        self._dense = _dense_of(self.recorded)
        for key, one in self.recorded.chains.items():
            if one.time is None:
                entries[key] = {"refused": 1.0}
                continue
            layer = key.partition(" : ")[0]
            # Turn by turn it was in that ratio; groups of chains were timed at different moments.
            dense = self._dense[layer]
            time = replace(one.time, dense=dense, chain=dense / one.time.speedup)
            entries[key] = vars(time)
            self._kinds.setdefault((layer, one.kind), []).append((one.macs, time))
        for known in self._kinds.values():
            known.sort(key=lambda one: one[0])
        self.cache.put(self._context, entries)

    def check(self, sites: Sequence[ConvSite]) -> None:
        """Raise DataError where the times are of another net."""
        if shape_of_net(sites) != self.recorded.net:
            raise DataError(
                f"--times {self.recorded.source}: must be of a kit of this net at this input size, "
                f"got one of {self.recorded.model}. Write one with factorize kit, and time that."
            )

    def of_plan(
        self, plan: Plan, offered: Mapping[str, Chain] | None = None
    ) -> dict[str, dict[str, float]]:
        """As of times taken here; notes which of the result's are no times but guesses."""
        found = super().of_plan(plan, offered)
        guessed = [one.spec.name for one in plan.factorized if self._is_guess(one)]
        if guessed:
            self.cache.notes.append(
                f"not timed on {self.recorded.device}, but taken to lie between chains of their "
                f"kind: those of {', '.join(guessed)}"
            )
        return found

    def _is_guess(self, layer: LayerPlan) -> bool:
        chain = methods.chain_of(layer)
        return any(key_of(layer.spec, s, chain) in self._guessed for s in layer.spec.input_sizes)

    def _found(self, spec: ConvSpec, size: Size, chains: Sequence[Chain]) -> list[ChainTime | None]:
        layer = layer_text(spec, size)
        return [self._guess(layer, chain, size) for chain in chains]

    def _guess(self, layer: str, chain: Chain, size: Size) -> ChainTime | None:
        if layer.startswith(f"{text_of(chain)} @ "):  # the layer beside itself
            dense = self._dense.get(layer)
            return ChainTime(dense, dense, 1.0, 1.0, 1.0) if dense else None
        known, macs = self._kinds.get((layer, kind_of(chain)), []), macs_at(chain, size)
        if not known or macs > known[-1][0]:
            return None
        self._guessed.add(f"{layer} : {text_of(chain)}")
        return between(known, macs)

    def _unit_ms(self) -> float:
        return self.recorded.unit_ms
