"""The latency model: the time of chains of convolutions beside the dense layer they replace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import compress
from typing import Any

from factorize import methods
from factorize.measure.cache import NumberCache
from factorize.measure.interleave import (
    Chain,
    ChainTime,
    beside_float,
    in_units,
    reference,
    time_chains,
)
from factorize.measure.runtimes import Target
from factorize.spec import ConvSpec, Size
from factorize.types import Plan

SCHEME = 4  # of timing: times of another one are not comparable


class LatencyModel:
    """Times of layers on one target: each distinct (chain, input size) is measured once.

    All chains of a layer and the dense layer are run in turns, one call of each per turn in
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
    beside
        Of other targets, on which no layer may become slower either.
    """

    beside: tuple[LatencyModel, ...] = ()

    def __init__(self, target: Target, cache: NumberCache, *, refresh: bool = False) -> None:
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
                    before = totals[index]
                    totals[index] = before + found if before and found else None
        return totals

    def in_integers(self, chain: Chain, size: Size) -> ChainTime | None:
        """A chain in int8 (``chain``) beside itself in float32 (``dense``), on an int8 target.

        Returns
        -------
        None where the runtime refuses it.
        """
        key = f"float32 beside int8 @ {size} : {text_of(chain)}"

        def beside(chains: Sequence[Chain]) -> list[ChainTime | None]:
            self.timed += len(chains)
            return [beside_float(self.target, chain, size) for chain in chains]

        return self._measured({key: chain}, beside)[0]

    def of_plan(
        self, plan: Plan, offered: Mapping[str, Chain] | None = None
    ) -> dict[str, dict[str, float]]:
        """What the report says of layers: times in ms, and bounds of their ratio.

        The two times of a layer are in the ratio that was measured of them, turn by turn. They
        are not made to add up to a net's: each is of a layer by itself, and not all are timed.

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
        unit_ms = self._unit_ms()
        return {
            spec.name: {
                "ms_original": time.dense * unit_ms,
                "ms": time.dense * unit_ms / time.speedup,
                "speedup_low": time.low,
                "speedup_high": time.high,
            }
            for spec, time in found.items()
            if time
        }

    def everywhere(
        self, plan: Plan, offered: Mapping[str, Chain] | None
    ) -> dict[str, dict[str, Any]]:
        """What `of_plan` tells, and under ``elsewhere`` the same of each target beside this one."""
        first, *others = (model.of_plan(plan, offered) for model in (self, *self.beside))
        named = [*zip((str(model.target) for model in self.beside), others, strict=True)]
        return {
            layer: {**times, "elsewhere": {name: one[layer] for name, one in named if layer in one}}
            for layer, times in first.items()
        }

    def _at_size(
        self, spec: ConvSpec, size: Size, chains: Sequence[Chain]
    ) -> list[ChainTime | None]:
        named = {key_of(spec, size, chain): chain for chain in chains}
        found = self._measured(named, lambda missing: self._found(spec, size, missing))
        times = dict(zip(named, found, strict=True))
        return [times[key_of(spec, size, chain)] for chain in chains]

    def _measured(
        self,
        named: Mapping[str, Chain],
        measure: Callable[[list[Chain]], list[ChainTime | None]],
    ) -> list[ChainTime | None]:
        """What is known of chains by their keys; those of which nothing is are measured."""
        wanted = [key for key in named if key not in self._known]
        if wanted and not self.refresh:
            stored = self.cache.get(self._context, wanted)
            self._known |= stored
            self.cached += len(stored)
        missing = {key: chain for key, chain in named.items() if key not in self._known}
        if missing:
            found = measure(list(missing.values()))
            entries = {
                key: asdict(one) if one else {"refused": 1.0}
                for key, one in zip(missing, found, strict=True)
            }
            steady = [one is None or one.steady for one in found]
            self.cache.put(self._context, dict(compress(entries.items(), steady)))
            self._known |= entries
        return [None if "refused" in e else ChainTime(**e) for e in map(self._known.get, named)]  # type: ignore[arg-type, operator]

    def _found(self, spec: ConvSpec, size: Size, chains: Sequence[Chain]) -> list[ChainTime | None]:
        """Times of chains that nothing is known of."""
        self.timed += len(chains)
        return time_chains(self.target, (spec,), chains, size)

    def _unit_ms(self) -> float:
        """Milliseconds per unit, by now."""
        return in_units(self.target, reference(self.target))[1]


def key_of(spec: ConvSpec, size: Size, chain: Chain) -> str:
    """What a chain's time is kept under: the layer that it replaces, its input, and the chain."""
    return f"{text_of((spec,))} @ {size} : {text_of(chain)}"


def text_of(chain: Chain) -> str:
    """A chain's shapes, without names and sizes."""
    return " > ".join(
        f"{s.kind} {s.in_channels}-{s.out_channels} k{s.kernel} s{s.stride} p{s.padding} "
        f"d{s.dilation} g{s.groups} {s.padding_mode}{' bias' if s.bias else ''}"
        f"{f' o{s.output_padding}' if any(s.output_padding) else ''}"
        for s in chain
    )
