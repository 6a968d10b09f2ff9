"""Make ready for searches: find the layers, time their chains, predict what each chain loses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from factorize import calibrate, graph, methods, tune
from factorize.errors import BudgetError, DataError, FactorizeError, NoConvolutionError
from factorize.fit import FitConfig, calibration_images
from factorize.measure import (
    LatencyModel,
    NumberCache,
    Recorded,
    RecordedTimes,
    Target,
    count,
    default_cache_path,
)
from factorize.search.assembled import Assembled
from factorize.search.curves import Curves
from factorize.search.fits import Fits
from factorize.search.known import KnownErrors
from factorize.search.losses import Losses, kinds_of
from factorize.search.offers import Layer, layers_of
from factorize.search.recorded_nets import RecordedNets
from factorize.search.replay import IncomparableError, Replay
from factorize.search.sensitivity import Divergences, Reaches
from factorize.search.tables import Tables
from factorize.search.within_budget import Search
from factorize.system.stopwatch import Stopwatch
from factorize.tensor.call import batch_size, rows_of
from factorize.tensor.effort import Effort, with_effort
from factorize.tensor.moments import LayerCalibration
from factorize.types import ConvSite, Data, Progress

REPLAYED, FEWEST, MACS = 128, 32, 5e11
"""Images that the net is run on with one layer replaced, for each layer: at most, at least, and
what all of these runs may cost."""

PASS = 3e11
"""MACs of the pass that tells what layers read, where chains are only compared."""


def prepare(
    model: nn.Module,
    example_input: Any,
    *,
    target: Target | None = None,
    latency: LatencyModel | None = None,
    never_slower: bool = False,
    names: Sequence[str] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    data: Data | None = None,
    config: FitConfig | None = None,
    sensitivity: str = "error",
    known: KnownErrors | None = None,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
    stopwatch: Stopwatch | None = None,
) -> Search:
    """Compute all that searches share; the model stays as it is.

    Parameters
    ----------
    target
        What the net will run on, if not on `Target()`, where nothing is timed.
    latency
        Times layers on its own target; None: nothing is timed.
    never_slower
        Whether to offer only chains that are measured faster than their layer.
    names
        Of methods to mix; empty: all that are registered.
    include, exclude
        As in `make_plan`. Of the rules there, 1x1 convolutions are searched too, and first layers
        where there are images to tell what that loses.
    data
        Losses are predicted, and measured, on its training images.
    config
        How plans are fitted.
    sensitivity
        ``error``: relative output errors, weighed by how much of them comes out at the end of the
        net. ``kl``: the KL divergence of the net's output with the one layer replaced.
    known
        Errors of earlier runs.
    stopwatch
        Gets the seconds of the steps, of this and of the searches.

    Raises
    ------
    NoConvolutionError, UnsupportedLayerError, ExportError, DataError
        The model or the data do not allow it.
    BudgetError
        No chain is measured faster than its layer.
    """
    config, stopwatch = config or FitConfig(), stopwatch or Stopwatch()
    if sensitivity == "kl" and data is None:
        raise DataError("--sensitivity kl needs images to run the net on, got none. Give --data.")
    how = config.resolved(data)
    names = [methods.get(name).name for name in names] or methods.names()
    sites = graph.find(model, example_input)
    params, macs, _ = count(model, example_input)
    assembled = nets_on(latency, model, example_input, sites) if latency else None
    with stopwatch.timed("time layers" if latency else "list chains"):
        layers, reasons = layers_of(
            sites, names, include=include, exclude=exclude, first=data is not None,
            target=latency.target if latency else target or Target(), latency=latency,
            never_slower=never_slower, progress=progress,
        )  # fmt: skip
    # On a busy machine the whole net may be measured to take less than its layers.
    dense = sum(layer.dense for layer in layers.values())
    time = max(assembled.units, dense) if assembled else 0.0
    specs = {name: layer.spec for name, layer in layers.items() if layer.offers}
    if not specs:
        raise nothing_to_do(layers, reasons, assembled)
    with tune.placed(device, model), stopwatch.timed("look at chains"):
        images = calibration_images(model, data, config.images, seed) if data else []
        kind = data.outputs.kind if data else "auto"
        replay = None
        if images:
            try:
                most = MACS / max(macs * len(specs) / 2, 1)  # a run begins at its layer
                some = _first(images, int(min(max(most, FEWEST), REPLAYED)))
                replay = Replay(model, some, memory=config.memory / 4, kind=kind)
            except IncomparableError:
                if sensitivity == "kl":
                    raise
        tied = {name: layers[name].tied for name in specs}
        every = dict(specs)
        for site in sites:
            if any(site.spec.name in names for names in tied.values()):
                every[site.spec.name] = site.spec
        moments: Iterable[tuple[str, LayerCalibration]] | None = None
        if config.calibration:
            moments = calibrate.load_calibration(config.calibration).layers.items()
        elif how != "weights":
            few = _first(images, int(max(PASS / max(macs, 1), 2 * FEWEST)))
            moments = calibrate.collect_each(
                model, every, few, memory=config.memory * 3 / 4, seed=seed, progress=progress
            )
        watch = None
        if replay is not None:
            watch = Divergences(replay) if sensitivity == "kl" else Reaches(replay)
        with with_effort(Effort.QUICK):  # moments of fewer patches than a fit takes
            curves = Curves(
                model, specs, {name: kinds_of(layers[name]) for name in specs}, moments, tied=tied,
                on_fit=watch, probes=watch.probes if watch else (),
                kernels=isinstance(watch, Divergences),
                known=None if isinstance(watch, Divergences) else known,  # which wants every kernel
                seed=seed, progress=progress,
            )  # fmt: skip
    tables = Tables(
        sites, layers, reasons, Losses(layers, curves, watch, stopwatch), time, macs, params,
        target=str(latency.target) if latency else "", latency=latency,
        never_slower=never_slower, gained=assembled.gained if assembled else 1.0,
    )  # fmt: skip
    fits = Fits(
        model, data=data, config=config, comparable=replay is not None, device=device, seed=seed,
        progress=progress, stopwatch=stopwatch,
    )  # fmt: skip
    return Search(tables, fits, assembled, stopwatch)


def nets_on(
    latency: LatencyModel, model: nn.Module, example_input: Any, sites: Sequence[ConvSite]
) -> Assembled | RecordedNets:
    """What tells how fast whole nets are on a target."""
    if isinstance(latency, RecordedTimes):
        return RecordedNets(latency, sites)
    return Assembled(model, example_input, latency.target)


def latency_model(
    target: Target, *, refresh: bool = False, also: Sequence[Target] = ()
) -> LatencyModel:
    """Times on a target and, beside it, on others, kept in the user's cache folder."""
    if isinstance(target, Recorded):
        return RecordedTimes(target)
    cache = NumberCache(default_cache_path())
    latency = LatencyModel(target, cache, refresh=refresh)
    latency.beside = tuple(LatencyModel(one, cache, refresh=refresh) for one in also)
    return latency


def nothing_to_do(
    layers: Mapping[str, Layer],
    reasons: Mapping[str, str],
    assembled: Assembled | RecordedNets | None,
) -> FactorizeError:
    """Why no layer has a chain that could replace it."""
    if not layers:
        name, reason = next(iter(reasons.items()))
        name = name or "the model"
        return NoConvolutionError(
            f"all {len(reasons)} convolutions stay dense ({name}: {reason}). See --include."
        )
    if assembled is None:
        return NoConvolutionError(
            f"no method saves MACs in any of {len(layers)} layers. Allow more --method."
        )
    return BudgetError(
        f"not faster: no chain of any of {len(layers)} layers is measured faster than its layer on "
        f"{assembled.target}: the model stays as it is. Try another --target, or --macs."
    )


def _first(images: Sequence[Any], missing: int) -> list[Any]:
    """The first of the images, in their batches."""
    kept = []
    for batch in images:
        if missing > 0:
            kept.append(rows_of(batch, slice(missing)))
            missing -= batch_size(kept[-1])
    return kept
