"""What can be done with each layer: ranks on the hardware's steps, their times and costs."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod
from typing import Any

from factorize import methods
from factorize.measure import ChainTime, LatencyModel, Target, runtimes
from factorize.plan import check_globs, skip_reason
from factorize.search.chain_times import ChainTimes, Timed
from factorize.search.error_curve import family_of
from factorize.spec import ConvSpec, Rank
from factorize.types import ConvSite, Progress

_log = logging.getLogger(__name__)

TIMED_RANKS = 16  # of a method and layer
COUNTED_RANKS = 60  # where nothing has to be measured
TIE = 0.01
"""Of the loss, for each stage of a chain that no time was measured of: fewer stages are likely
faster, and losses are not predicted to a percent."""
SMOOTH = 1.05  # a rank off a step may take so much more than the straight line says

JUDGED = 1 / 3
"""Share of a layer's MACs from which on chains tell what a target likes: below, most are faster."""

BASE = 64  # a multiple of all steps
PROBE = ConvSpec("", "conv2d", 128, 128, (3, 3), (1, 1), (1, 1), (1, 1), input_sizes=((28, 28),))


@dataclass(frozen=True)
class Offer:
    """One chain for a layer and all that share its weight, which is counted once.

    Attributes
    ----------
    time
        In the latency model's units; None where nothing is timed.
    estimated
        Whether the time is not its own, but lies between those of other ranks.
    stepped
        Whether its rank is on the hardware's step, as all that are timed are.
    """

    method: str
    rank: Rank
    variant: str
    macs: int
    params: int
    time: float | None = field(default=None, compare=False)
    estimated: bool = field(default=False, compare=False)
    stepped: bool = True


@dataclass(frozen=True)
class Layer:
    """A convolution that may be replaced, and its chains.

    Attributes
    ----------
    tied
        Other layers that share its weight, and get the chain that it gets.
    macs, params, dense
        MACs, parameters and time of all of them as they are.
    slower
        The fastest chain and its time, where none is faster than the layer; of several targets, the
        time where it gains least.
    gains
        For each target, the most that chains of each method gain there, see `likes`.
    """

    spec: ConvSpec
    tied: tuple[str, ...]
    offers: tuple[Offer, ...]
    macs: int
    params: int
    dense: float
    slower: tuple[Offer, ChainTime] | None = None
    gains: tuple[dict[str, float], ...] = ()


def hardware_step(latency: LatencyModel) -> int:
    """The finest step of ranks at which time is no more than on the line through coarser ones."""
    method = methods.get("spatial_svd")
    variant = method.variants[0]
    steps = runtimes.get(latency.target.runtime).steps
    ranks = {
        rank: method.stages(PROBE, (rank,), variant)
        for rank in (BASE, *(BASE + step for step in reversed(steps)))
    }
    found = latency.times(PROBE, list(ranks.values()))
    times = {rank: one.chain for rank, one in zip(ranks, found, strict=True) if one}
    for coarse, fine in pairwise(steps):
        line = sum(times.get(rank, 0.0) for rank in (BASE, BASE + coarse)) / 2
        if times.get(BASE + fine, float("inf")) > SMOOTH * line:
            return coarse
    return steps[-1]


def layers_of(
    sites: Sequence[ConvSite],
    names: Sequence[str],
    *,
    include: Sequence[str],
    exclude: Sequence[str],
    first: bool,
    target: Target,
    latency: LatencyModel | None,
    never_slower: bool,
    progress: Progress | None,
) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers that may be replaced, and why the others may not, both by name.

    Parameters
    ----------
    names
        Of the methods.
    first
        Whether layers that read the image may be replaced too.
    target
        What the net will run on: where nothing is timed, its runtime's coarsest step is kept to,
        and ranks between are offered besides.
    latency
        Times the chains; None: nothing is timed.
    never_slower
        Whether to leave out what is not measured faster than its layer.
    """
    check_globs(sites, include, exclude)
    step = runtimes.get(target.runtime).steps[0]
    if latency:
        step = max(map(hardware_step, (latency, *latency.beside)))
    allowed: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    groups: dict[str, list[ConvSite]] = {}
    for site in sites:
        spec = site.spec
        refused = {
            name: skip_reason(
                site, methods.get(name), include, exclude, first=first, pointwise=True
            )
            or _unsearched(spec, name)
            for name in names
        }
        allowed[spec.name] = [name for name, reason in refused.items() if reason is None]
        if not allowed[spec.name]:
            reasons[spec.name] = str(next(iter(refused.values())))
        else:
            leader = next((name for name in site.tied if name in groups), spec.name)
            groups.setdefault(leader, []).append(site)
    layers: dict[str, Layer] = {}
    alike: dict[Any, Layer] = {}
    for done, (name, group) in enumerate(groups.items()):
        shared = [one for one in names if all(one in allowed[site.spec.name] for site in group)]
        specs = [site.spec for site in group]
        # A weight that a layer outside of the group has too does not go away.
        stays = len(group) <= len(group[0].tied)
        shape = *(replace(spec, name="") for spec in specs), *shared, stays
        if shape not in alike:
            start = time.perf_counter()
            alike[shape] = _layer(specs, shared, step, latency, never_slower, stays=stays)
            _log.debug(
                "chains for %s: %d offered in %.2f s",
                name, len(alike[shape].offers), time.perf_counter() - start,
            )  # fmt: skip
        tied = tuple(spec.name for spec in specs[1:])
        layers[name] = replace(alike[shape], spec=specs[0], tied=tied)
        if progress:
            progress("time layers", done + 1, len(groups), {})
    return layers, reasons


def _unsearched(spec: ConvSpec, name: str) -> str | None:
    """Why a layer is not searched, or not by a method."""
    if spec.groups > 1:
        return f"groups={spec.groups}: a budget is for ungrouped layers. Use --rank or --energy"
    if not methods.get(name).searched:
        return f"{name} is not searched with a budget. Use --rank or --energy"
    method = methods.get(name)
    if prod(spec.kernel) == 1 and method.supports(spec) is None:
        count = max(len(method.stages(spec, method.max_rank(spec), v)) for v in method.variants)
        if count > 2:
            return f"{name}: more 1x1 in a row do no more than two, see channel_svd"
    return None


def _layer(
    specs: Sequence[ConvSpec],
    names: Iterable[str],
    step: int,
    latency: LatencyModel | None,
    never_slower: bool,
    *,
    stays: bool,
) -> Layer:
    """The layer of convolutions that share a weight, which may stay for others."""
    first, tied = specs[0], tuple(spec.name for spec in specs[1:])
    macs = sum(spec.macs for spec in specs)
    params = _params([(spec,) for spec in specs]) - stays * prod(first.weight_shape)
    offers, chains = [], []
    for name in names:
        method = methods.get(name)
        stepped = method.ladder(first, step=step, count=TIMED_RANKS if latency else COUNTED_RANKS)
        between = () if latency else method.ladder(first, count=COUNTED_RANKS)
        for rank in dict.fromkeys((*stepped, *between)):
            for variant in method.variants_of(first):
                made = [method.stages(spec, rank, variant) for spec in specs]
                cost = sum(stage.macs for chain in made for stage in chain)
                if cost < macs:
                    on = rank in stepped
                    offers.append(Offer(name, rank, variant, cost, _params(made), stepped=on))
                    chains.append(made)
    if latency is None:
        return Layer(first, tied, tuple(offers), macs, params, 0.0)
    kinds = [(o.method, o.variant, family_of(methods.get(o.method), first, o.rank)) for o in offers]
    each = [ChainTimes(one, specs) for one in (latency, *latency.beside)]
    timed = [times.of_kinds(chains, kinds) for times in each]
    good, slower = [], []
    for offer, *found in zip(offers, *timed, strict=True):
        known = [one for one in found if one]
        if len(known) < len(found):
            continue
        if not any(one.estimated for one in known):
            slower.append((offer, _worst(known)))
        if not never_slower or all(one.faster for one in known):
            estimated = any(one.estimated for one in known)
            good.append(replace(offer, time=known[0].total.chain, estimated=estimated))
    best = max(slower, key=lambda one: one[1].speedup, default=None)
    gains = tuple(gains_of(offers, found, macs) for found in timed)
    return Layer(
        first, tied, tuple(good), macs, params, each[0].dense, None if good else best, gains
    )


def gains_of(offers: Sequence[Offer], found: Sequence[Timed | None], macs: int) -> dict[str, float]:
    """The highest lower bound of a speedup by method, of measured chains of a share of the MACs."""
    gains: dict[str, float] = {}
    for offer, one in zip(offers, found, strict=True):
        if one and not one.estimated and offer.macs >= JUDGED * macs:
            gains[offer.method] = max(gains.get(offer.method, 0.0), one.total.low)
    return gains


def _worst(found: Sequence[Timed]) -> ChainTime:
    """Of the target on which the chain gains least."""
    return min((one.total for one in found), key=lambda total: total.speedup)


def confirmed(
    layer: Layer, offer: Offer, specs: Sequence[ConvSpec], latency: LatencyModel, *,
    never_slower: bool,
) -> Layer:  # fmt: skip
    """The layer with the chain's own time in place of an estimate; without one that is slower."""
    method = methods.get(offer.method)
    made = [method.stages(spec, offer.rank, offer.variant) for spec in specs]
    found = [ChainTimes(one, specs).of([made])[0] for one in (latency, *latency.beside)]
    known = [one for one in found if one]
    others = tuple(one for one in layer.offers if one != offer)
    whole = len(known) == len(found)
    if whole and (not never_slower or all(one.faster for one in known)):
        sure = replace(offer, time=known[0].total.chain, estimated=False)
        return replace(layer, offers=tuple(sure if o == offer else o for o in layer.offers))
    best = layer.slower
    if whole and (best is None or _worst(known).speedup > best[1].speedup):
        best = offer, _worst(known)
    return replace(layer, offers=others, slower=best)


def _params(chains: Sequence[Sequence[ConvSpec]]) -> int:
    """Of chains whose weights are shared, and whose biases are not."""
    weights = sum(prod(stage.weight_shape) for stage in chains[0])
    return weights + sum(stage.out_channels for one in chains for stage in one if stage.bias)
