"""What can be done with each layer: ranks on the hardware's steps, their times and costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from factorize import methods
from factorize.measure import ChainTime, LatencyModel
from factorize.plan import check_globs, skip_reason
from factorize.types import ConvSite, ConvSpec, Progress, Rank

TIMED_RANKS = 16  # of a method and layer
COUNTED_RANKS = 60  # where nothing has to be measured
STEPS = (16, 8, 4)  # of channels, that the hardware may like
SMOOTH = 1.05  # a rank off a step may take so much more than the straight line says

PROBE = ConvSpec("", "conv2d", 128, 128, (3, 3), (1, 1), (1, 1), (1, 1), input_sizes=((28, 28),))


@dataclass(frozen=True)
class Option:
    """One chain for one layer; `time` is None where none was measured."""

    method: str
    rank: Rank
    variant: str
    macs: int
    params: int
    time: ChainTime | None = None


@dataclass(frozen=True)
class Layer:
    """A convolution that may be replaced, and its chains.

    Attributes
    ----------
    tied
        Other layers that share its weight, and get the chain that it gets.
    slower
        The fastest chain, where none is faster than the layer.
    """

    spec: ConvSpec
    tied: tuple[str, ...]
    options: tuple[Option, ...]
    dense: float
    slower: Option | None = None


def hardware_step(latency: LatencyModel) -> int:
    """The finest step of ranks at which time is no more than on the line through coarser ones."""
    method = methods.get("spatial_svd")
    variant = method.variants[0]
    ranks = {rank: method.stages(PROBE, (rank,), variant) for rank in (64, 68, 72, 80)}
    found = latency.times(PROBE, list(ranks.values()))
    times = {rank: one.chain for rank, one in zip(ranks, found, strict=True) if one}
    for coarse, (low, middle, high) in zip(STEPS, ((64, 72, 80), (64, 68, 72)), strict=False):
        line = sum(times.get(rank, 0.0) for rank in (low, high)) / 2
        if times.get(middle, float("inf")) > SMOOTH * line:
            return coarse
    return STEPS[-1]


def layers_of(
    sites: Sequence[ConvSite],
    names: Sequence[str],
    *,
    include: Sequence[str],
    exclude: Sequence[str],
    first: bool,
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
    latency
        Times the chains; None: nothing is timed.
    never_slower
        Whether to leave out what is not measured faster than its layer.
    """
    check_globs(sites, include, exclude)
    step = hardware_step(latency) if latency else 1
    layers: dict[str, Layer] = {}
    reasons: dict[str, str] = {}
    leaders: dict[str, str] = {}
    for index, site in enumerate(sites):
        spec = site.spec
        refused = {
            name: skip_reason(
                site, methods.get(name), include, exclude, first=first, pointwise=True
            )
            for name in names
        }
        allowed = [name for name, reason in refused.items() if reason is None]
        if not allowed:
            reasons[spec.name] = str(next(iter(refused.values())))
        elif leader := next((leaders[name] for name in site.tied if name in leaders), None):
            leaders[spec.name] = leader
        else:
            leaders[spec.name] = spec.name
            layers[spec.name] = _layer(spec, allowed, step, latency, never_slower)
        if progress:
            progress("time layers", index + 1, len(sites), {})
    followers = _followers(leaders)
    return {
        name: Layer(layer.spec, followers[name], layer.options, layer.dense, layer.slower)
        for name, layer in layers.items()
    }, reasons


def _layer(
    spec: ConvSpec, names: Iterable[str], step: int, latency: LatencyModel | None, faster: bool
) -> Layer:
    options = []
    for name in names:
        method = methods.get(name)
        count = TIMED_RANKS if latency else COUNTED_RANKS
        for rank in method.ladder(spec, step=step, count=count):
            for variant in method.variants:
                stages = method.stages(spec, rank, variant)
                macs = sum(stage.macs for stage in stages)
                if macs < spec.macs:
                    params = sum(stage.params for stage in stages)
                    options.append((Option(name, rank, variant, macs, params), stages))
    if latency is None:
        return Layer(spec, (), tuple(option for option, _ in options), 0.0)
    *times, whole = latency.times(spec, [*(stages for _, stages in options), (spec,)])
    dense = whole.dense if whole else 0.0
    timed = [
        Option(**{**vars(option), "time": time})
        for (option, _), time in zip(options, times, strict=True)
        if time
    ]
    good = tuple(option for option in timed if not faster or option.time.faster)  # type: ignore[union-attr]
    slower = min(timed, key=lambda o: o.time.chain, default=None) if not good else None  # type: ignore[union-attr]
    return Layer(spec, (), good, dense, slower)


def _followers(leaders: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name, leader in leaders.items():
        found[leader] = (*found.get(leader, ()), *((name,) if name != leader else ()))
    return found
