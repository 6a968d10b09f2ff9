"""What each kind of chain loses on each layer: as well known as it has to be."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from factorize.errors import DataError
from factorize.fit.layer import summed
from factorize.search.error_curve import LEAST, Fit, Key, curve_through, macs_of
from factorize.search.known import KnownErrors
from factorize.search.layer_errors import LayerErrors
from factorize.spec import ConvSpec, Rank
from factorize.tensor.call import evaluating
from factorize.tensor.effort import Effort, with_effort
from factorize.tensor.moments import LayerCalibration
from factorize.tensor.threads import in_threads
from factorize.types import Progress

_log = logging.getLogger(__name__)

SHARES = (0.25, 0.55)
"""Of a layer's MACs, at which all kinds of chains are looked at roughly."""

NEAR = 0.3
"""Difference in the logarithm of the MACs, up to which a fit tells what another rank loses."""

LEARNED = 3
"""Fits of a method, from which on they tell how far rough looks at it are off."""

UNKNOWN, LEVELLED, FAR = 2.5, 1.5, 1.25
"""Factors by which an error may be lower than estimated: by a rough look alone; by one that fits
of the method in other layers correct; by fits at other ranks."""

Offered = Mapping[str, Mapping[Key, Sequence[Rank]]]
"""By the layer's name, its chains by kind, the cheapest rank first."""

OnFit = Callable[[str, Fit], None]
"""Called as on_fit(name, fit), in the calling thread."""


class Curves:
    """Relative squared errors of layers by the kind of a chain and its MACs.

    At first there is a rough look at all kinds of chains, one for all layers of one shape, whose
    levels their probes tell. It gives a curve its form. Its level is that of fits, where these
    were asked for, or as far off as in the layers where the method was fitted.

    Parameters
    ----------
    specs
        The layers.
    offered
        Their chains.
    calibration
        Moments by the layer's name, of all layers, one at a time. None: fits are to the weights.
    tied
        By the layer's name, other layers that have its weight: it is fitted to the inputs of all.
    on_fit
        Is given each layer's probes, and what was fitted.
    probes
        Shares of each layer's MACs, at which it is fitted to tell how far errors reach.
    kernels
        Whether every fit has to have one.
    known
        Errors of earlier runs, which no fits are made for.
    progress
        Called as ``progress(step, done, all, {})``, the steps being ``look at layers``,
        ``look at chains`` and ``fit chains``.

    Raises
    ------
    DataError
        The calibration lacks a layer.
    """

    def __init__(
        self,
        model: nn.Module,
        specs: Mapping[str, ConvSpec],
        offered: Offered,
        calibration: Iterable[tuple[str, LayerCalibration]] | None,
        *,
        tied: Mapping[str, Sequence[str]] | None = None,
        on_fit: OnFit | None = None,
        probes: Sequence[float] = (),
        kernels: bool = False,
        known: KnownErrors | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.specs, self.offered = model, specs, offered
        self.on_fit, self.known, self.progress = on_fit, known, progress
        self.layers: dict[str, LayerErrors] = {}
        self._like: dict[str, str] = {}  # the layer that was looked at instead
        self._rough: dict[str, dict[Key, dict[int, float]]] = {}
        self._fitted: dict[str, dict[Key, dict[int, float]]] = {name: {} for name in specs}
        self._off: dict[str, dict[tuple[str, Key], float]] = {}  # logarithms, by method
        arriving = _arriving(specs, tied or {}, calibration)
        chains = {name: list(of_layer.items()) for name, of_layer in offered.items()}

        # Whoever asks for a weight puts its layer in eval mode: all at once, nobody changes it.
        with evaluating(model), torch.no_grad():
            # One after the other: the matrices of a large layer take a gigabyte.
            for name, moments in arriving:
                self.layers[name] = layer = LayerErrors(
                    specs[name], model.get_submodule(name), moments, chains[name],
                    probes=probes, kernels=kernels, seed=seed,
                )  # fmt: skip
                for probe in layer.probes if on_fit else ():
                    on_fit(name, probe)  # type: ignore[misc]
                if progress:
                    progress("look at layers", len(self.layers), len(specs), {})
        if missing := [name for name in specs if name not in self.layers]:
            raise DataError(
                f"{specs[missing[0]].label}: the calibration must have the moments of each layer, "
                "and lacks those of this one. Calibrate all layers of the search."
            )
        self._look()

    def error(self, name: str, key: Key, macs: float) -> float:
        """Of a chain for a layer, as well as it is known."""
        fitted = self._fitted[name].get(key, {})
        if macs in fitted:
            return fitted[int(macs)]
        if self.layers[name].is_exact(key):
            return curve_through(key, fitted).at(macs)
        if fitted:
            sizes = sorted(fitted)
            off = [log(fitted[x] / self._form(name, key, x)) for x in sizes]
            level = float(np.interp(log(macs), np.log(sizes), off))
        else:
            off = list(self._off.get(key[0], {}).values())
            level = median(off) if len(off) >= LEARNED else 0.0
        return min(max(self._form(name, key, macs) * exp(level), LEAST), 1.0)

    def doubt(self, name: str, key: Key, macs: float) -> float:
        """The factor by which the error may be lower; 1: a fit tells it."""
        fitted = self._fitted[name].get(key, {})
        if self.layers[name].is_exact(key) or macs in fitted:
            return 1.0
        if fitted:
            return 1.0 if min(abs(log(macs / fit)) for fit in fitted) <= NEAR else FAR
        return LEVELLED if len(self._off.get(key[0], {})) >= LEARNED else UNKNOWN

    def fit(self, asked: Iterable[tuple[str, Key, Rank]]) -> None:
        """Fit chains to their layers."""
        self._find([_Task(*one, fitted=True) for one in asked])

    def _form(self, name: str, key: Key, macs: float) -> float:
        """The error as a rough look has it."""
        like = self._like[name]
        error = self._curves[like][key].at(macs)
        if like == name:
            return error
        pairs = zip(self.layers[name].probes, self.layers[like].probes, strict=True)
        level = [
            log(max(a.error, LEAST)) / log(max(b.error, LEAST)) for a, b in pairs if b.error < 1
        ]
        return error ** (min(max(median(level), 0.2), 5.0) if level else 1.0)

    def _look(self) -> None:
        """A rough look at all kinds of chains; what is known without a fit is exact."""
        tasks, shapes = [], dict[Any, str]()
        for name, kinds in self.offered.items():
            spec, layer = self.specs[name], self.layers[name]
            like = shapes.setdefault((replace(spec, name=""), tuple(kinds)), name)
            self._like[name] = like
            for key, ranks in kinds.items():
                if layer.is_exact(key):
                    tasks += [_Task(name, key, rank, fitted=True) for rank in ranks]
                elif like == name:
                    some = {_within(spec, key, ranks, share * spec.macs) for share in SHARES}
                    tasks += [_Task(name, key, rank, fitted=False) for rank in sorted(some)]
        self._find(tasks)
        self._curves = {
            name: {key: curve_through(key, points) for key, points in kinds.items()}
            for name, kinds in self._rough.items()
        }

    def _find(self, tasks: Sequence[_Task]) -> None:
        def found(task: _Task) -> Fit:
            layer, start = self.layers[task.name], time.perf_counter()
            if task.fitted:
                with with_effort(Effort.QUICK):
                    fit = layer.fitted(task.key, task.rank)
            else:
                fit = Fit(task.key, task.macs(layer.spec), layer.rough(task.key, task.rank))
            seconds = time.perf_counter() - start
            _log.debug(
                "%s, %s: %s %s %s: squared error %.3g in %.2f s",
                task.step, task.name, *task.key[:2], task.rank, fit.error, seconds,
            )  # fmt: skip
            return fit

        def unknown() -> Iterator[_Task]:
            for task in tasks:
                layer, error = self.layers[task.name], None
                if self.known and not layer.is_exact(task.key):
                    error = self.known.get(layer.mark, task.key, task.rank, task.how)
                if error is None:
                    yield task
                else:
                    self._put(task, error)

        done = 0
        with evaluating(self.model), in_threads(found, unknown()) as results:
            for task, fit in results:
                self._put(task, fit.error)
                if self.on_fit and task.fitted:
                    self.on_fit(task.name, fit)
                layer = self.layers[task.name]
                if self.known and not layer.is_exact(task.key):
                    self.known.put(layer.mark, task.key, task.rank, task.how, fit.error)
                done += 1
                if self.progress:
                    self.progress(task.step, done, len(tasks), {})

    def _put(self, task: _Task, error: float) -> None:
        name, key, macs = task.name, task.key, task.macs(self.specs[task.name])
        table = self._fitted if task.fitted else self._rough
        table.setdefault(name, {}).setdefault(key, {})[macs] = max(error, LEAST)
        if task.fitted and not self.layers[name].is_exact(key):
            off = log(max(error, LEAST) / self._form(name, key, macs))
            self._off.setdefault(key[0], {})[name, key] = off


@dataclass(frozen=True)
class _Task:
    """A chain for a layer."""

    name: str
    key: Key
    rank: Rank
    fitted: bool

    @property
    def how(self) -> str:
        return "fitted" if self.fitted else "rough"

    @property
    def step(self) -> str:
        return "fit chains" if self.fitted else "look at chains"

    def macs(self, spec: ConvSpec) -> int:
        return macs_of(spec, self.key, self.rank)


def _within(spec: ConvSpec, key: Key, ranks: Sequence[Rank], macs: float) -> Rank:
    """The last rank within some MACs, or the first."""
    return next((r for r in reversed(ranks) if macs_of(spec, key, r) <= macs), ranks[0])


def _arriving(
    specs: Mapping[str, ConvSpec],
    tied: Mapping[str, Sequence[str]],
    calibration: Iterable[tuple[str, LayerCalibration]] | None,
) -> Iterator[tuple[str, LayerCalibration | None]]:
    """Each layer, once the moments of all that have its weight are there."""
    if calibration is None:
        yield from ((name, None) for name in specs)
        return
    groups = {name: [name, *tied.get(name, ())] for name in specs}
    leaders = {one: name for name, group in groups.items() for one in group}
    waiting: dict[str, LayerCalibration] = {}
    for arrived, moments in calibration:
        if arrived in leaders:
            waiting[arrived] = moments
            group = groups[leaders[arrived]]
            if all(name in waiting for name in group):
                yield group[0], summed([waiting.pop(name) for name in group])
