"""Whole nets on a device far away: as they were timed there, or as their layers promise."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from factorize import methods
from factorize.errors import DataError
from factorize.measure import ChainTime, RecordedTimes, net_id
from factorize.types import ConvSite, Latency, LayerPlan, Speedup


class RecordedNets:
    """Stands where `Assembled` does, and times nothing.

    A net that was timed on the device is as fast as it was there. Any other one saves the time that
    its layers save, times what nets that were timed saved over what was predicted of them.

    Attributes
    ----------
    units, unit_ms, gained
        As in `Assembled`.
    gain
        Time that nets save over that which their layers promise.

    Raises
    ------
    DataError
        The times are of another net, or the net itself could not be timed.
    """

    gained = 1.0

    def __init__(self, latency: RecordedTimes, sites: Sequence[ConvSite]) -> None:
        latency.check(sites)
        self.latency, self.target, self._times = latency, latency.target, latency.recorded
        if self._times.units is None:
            raise DataError(
                f"--times {self._times.source}: must have the time of the whole net, which was not "
                f"timed on {self._times.device}. Run bench.py again, or a newer runtime there."
            )
        layers = [latency.times(site.spec, [(site.spec,)])[0] for site in sites]
        self.units = max(self._times.units, sum(one.dense for one in layers if one))
        self.unit_ms = self._times.unit_ms
        gains = [
            (1 - 1 / net.speedup) / max(1 - 1 / net.predicted, 1e-6)
            for net in self._times.nets.values()
        ]
        self.gain = min(max(median(gains), 0.5), 2.0) if gains else 1.0

    def speedup(self, layers: Sequence[LayerPlan]) -> Speedup:
        """Of a net with these layers replaced; no runs where it is predicted."""
        dense_ms = self.units * self.unit_ms
        if timed := self._times.nets.get(net_id(layers)):
            before, after, runs = timed.original_ms, timed.compressed_ms, int(timed.runs)
            ratios = timed.speedup, timed.p10, timed.p90
        else:
            found = [
                self.latency.times(layer.spec, [methods.chain_of(layer)])[0] for layer in layers
            ]
            ratios = tuple(self._predicted(found, bound) for bound in ("speedup", "low", "high"))
            before, after, runs = dense_ms, dense_ms / ratios[0], 0
        return Speedup(
            runtime=self._times.runtime, device=self._times.device, dtype="float32",
            batch=self._times.batch, threads=self._times.threads, runs=runs,
            original=Latency(before, before, before), compressed=Latency(after, after, after),
            speedup=ratios[0], speedup_p10=ratios[1], speedup_p90=ratios[2],
            taken_from=self._times.source,
        )  # fmt: skip

    def _predicted(self, found: Sequence[ChainTime | None], bound: str) -> float:
        """A chain whose time nobody knows is held to be as slow as its layer."""
        saved = sum(one.dense * (1 - 1 / getattr(one, bound)) for one in found if one)
        return self.units / max(self.units - self.gain * saved, 1e-9 * self.units)
