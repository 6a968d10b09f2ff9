"""All chains that a search might want the times of, those first that it asks for first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from factorize import methods
from factorize.measure import Chain, Group, Target, Wanted, runtimes
from factorize.measure.kit.wanted import macs_at
from factorize.measure.latency_model import key_of, text_of
from factorize.search.offers import PROBE, Layer, layers_of
from factorize.search.prepare import nothing_to_do
from factorize.search.within_budget import LEAST_SHARE
from factorize.spec import ConvSpec, Size
from factorize.types import ConvSite

TOGETHER = 8  # chains that are timed beside one run of their layer
NEAR = 1.25  # times the share of MACs that the speedup would take: dearer chains are wanted last

Place = tuple[ConvSpec, Size]


def wanted_chains(
    sites: Sequence[ConvSite],
    names: Sequence[str],
    *,
    include: Sequence[str],
    exclude: Sequence[str],
    target: Target,
    speedup: float,
) -> list[Group]:
    """The chains of all layers on each step that hardware may like, each once.

    First what tells the step, then what a search measures at once, on the coarsest step and on the
    others, then what it may choose, the likely before the others; of each the layers of many MACs
    before those of few.

    Raises
    ------
    NoConvolutionError
        There is none.
    """
    names = names or methods.names()
    ranked: dict[tuple[int, Place], list[Chain]] = {}
    seen: set[str] = set()

    def add(tier: int, place: Place, chain: Chain) -> None:
        key = key_of(*place, chain)
        if key not in seen and text_of(chain) != text_of(place[:1]):
            seen.add(key)
            ranked.setdefault((tier, place), []).append(chain)

    probe = replace(PROBE, input_sizes=())
    searches = []
    for tier, step in enumerate(runtimes.get(target.runtime).steps):
        device = Wanted(target, step)
        layers, reasons = layers_of(
            sites, names, include=include, exclude=exclude, first=True, target=target,
            latency=device, never_slower=False, progress=None,
        )  # fmt: skip
        if not any(layer.offers for layer in layers.values()):
            raise nothing_to_do(layers, reasons, None)
        searches.append(layers)
        for place, chains in device.chains.items():
            for chain in chains:
                add(0 if place[0] == probe else 1 + min(tier, 1), place, chain)
    specs = {site.spec.name: site.spec for site in sites}
    for layers in searches:
        for layer in layers.values():
            _add_offers(add, layer, [specs[name] for name in (layer.spec.name, *layer.tied)],
                        speedup)  # fmt: skip
    work: Counter[Place] = Counter()
    for site in sites:
        for size in site.spec.input_sizes:
            place = replace(site.spec, name="", input_sizes=()), size
            work[place] += macs_at(place[:1], size)
    order = sorted(ranked, key=lambda one: (one[0], -work[one[1]]))
    return [
        Group(*place, tuple(chains[start : start + TOGETHER]))
        for tier, place in order
        for chains in [ranked[tier, place]]
        for start in range(0, len(chains), TOGETHER)
    ]


def _add_offers(add, layer: Layer, specs: Sequence[ConvSpec], speedup: float) -> None:  # type: ignore[no-untyped-def]
    for offer in layer.offers:
        likely = LEAST_SHARE <= offer.macs / layer.macs <= NEAR / speedup
        for spec in specs:
            chain = methods.get(offer.method).stages(spec, offer.rank, offer.variant)
            for size in spec.input_sizes:
                add(3 if likely else 4, (replace(spec, name="", input_sizes=()), size), chain)
