"""What each method would lose on each layer, by its MACs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from sys import maxsize

import torch
from torch import Tensor, nn

from factorize import methods
from factorize.errors import DataError
from factorize.fit.layer import fit_layer, shared_layers, summed
from factorize.graph import effective_weight
from factorize.methods import chain_kernel
from factorize.methods.svd import SvdMethod
from factorize.search.error_curve import (
    Curve,
    Fit,
    Key,
    curve_through,
    family_of,
    macs_of,
    nearest,
)
from factorize.search.known import KnownErrors, fingerprint
from factorize.search.reduced import is_large, reduced
from factorize.spec import ConvSpec, Rank
from factorize.tensor.call import evaluating
from factorize.tensor.moments import (
    LayerCalibration,
    centred,
    shrinkage,
    target_and_norm,
)
from factorize.tensor.norm import Norm
from factorize.tensor.ranks import discarded_share
from factorize.tensor.svd import singular_values
from factorize.tensor.threads import in_threads
from factorize.types import LayerPlan, Progress

SHARES = (0.15, 0.35, 0.65)
"""Of a layer's MACs, at which its methods are fitted."""

ROUGH = (0.3, 0.6)
"""The same without data, where a fit to noise-like weights takes longest and tells least."""

FINE = tuple(share / 20 for share in range(1, 20))
"""The same where all errors follow from one SVD."""

STEP = 8
"""Ranks are looked at in such steps, or in finer ones where there would be few."""

OnFit = Callable[[str, Fit], None]
"""Called as on_fit(name, fit): a probe's kernels for each layer at least."""


def curves(
    model: nn.Module,
    specs: Mapping[str, ConvSpec],
    offered: Sequence[str] | Mapping[str, Iterable[Key]],
    calibration: Iterable[tuple[str, LayerCalibration]] | None,
    *,
    seed: int = 0,
    on_fit: OnFit | None = None,
    known: KnownErrors | None = None,
    progress: Progress | None = None,
) -> dict[str, list[Curve]]:
    """For each layer the curves of its methods, their orders and their families.

    Layers of up to `reduced.LARGEST` channels are fitted, in the norm of their output where there
    is a calibration. In larger ones the errors of methods that are one SVD of the weight are exact
    without a calibration; the others are estimated on a stand-in. Layers that share a weight are
    fitted once.

    Parameters
    ----------
    specs
        The layers.
    offered
        Names of methods, for all layers; or by the layer's name what chains will be asked for, the
        nearest of whose families are fitted. Those that do not support a layer or save it no MACs
        have no curve.
    calibration
        Moments by the layer's name, of all layers, one at a time.
    on_fit
        Is given the kernels that were made, and those of a probe besides, layer by layer.
    known
        Errors of earlier runs, which no kernels are made for.
    progress
        Called as ``progress("curves", layers begun, layers, {})``.

    Raises
    ------
    DataError
        The calibration lacks a layer.
    """
    found: dict[str, list[Curve]] = {}

    def tasks() -> Iterator[_Task]:
        for names, moments in _arriving(model, specs, calibration):
            layer = _Layer(specs[names[0]], model.get_submodule(names[0]), moments, seed)
            yield _Task(names, layer)
            layer.mark = layer.fingerprint() if known else ""
            for key, (line, asking) in layer.asked(names, offered).items():
                yield _Task(asking, layer, key, line, known and known.get(layer.mark, key))

    def done(task: _Task) -> tuple[dict[Rank, float], list[Fit]]:
        fits: list[Fit] = []
        tell = fits.append if on_fit else None
        if task.errors is not None:
            return task.errors, fits
        if task.key is not None:
            return task.layer.errors(task.key, task.line, tell), fits
        if tell:
            task.layer.probe(tell)
        return {}, fits

    # Whoever asks for a weight puts its layer in eval mode: all at once, nobody changes anything.
    with evaluating(model), in_threads(done, tasks()) as results:
        for task, (errors, fits) in results:
            for name in task.names:
                for fit in fits:
                    on_fit(name, fit)  # type: ignore[misc]
                of_layer, spec = found.setdefault(name, []), specs[name]  # with sizes of its own
                if task.key:
                    points = {macs_of(spec, task.key, rank): e for rank, e in errors.items()}
                    of_layer.append(curve_through(task.key, points))
            if known and task.key and task.errors is None:
                known.put(task.layer.mark, task.key, errors)
            if progress and task.key is None:
                progress("curves", len(found), len(specs), {})
    if missing := [name for name in specs if name not in found]:
        raise DataError(
            f"{specs[missing[0]].label}: the calibration must have the moments of each layer, and "
            "lacks those of this one. Calibrate all layers of the search."
        )
    return {name: found[name] for name in specs}


class _Layer:
    """One weight, and what it is to be fitted to."""

    def __init__(
        self, spec: ConvSpec, module: nn.Module, moments: LayerCalibration | None, seed: int
    ) -> None:
        self.spec, self.module, self.moments, self.seed = spec, module, moments, seed
        self.mark = ""
        self.weight = target = effective_weight(module).to("cpu", torch.float64)
        self.stand_in = None
        if is_large(spec):
            norm = inputs = Norm()
            if moments is not None:
                parts = moments
                if module.bias is not None:
                    parts = LayerCalibration(centred(moments.fit), centred(moments.held_out))
                inputs = Norm(parts.fit.second)
                target, norm = target_and_norm(parts.fit, self.weight, shrinkage(parts))
            self.stand_in = reduced(spec, target, norm, inputs)

    def fingerprint(self) -> str:
        """What its errors are known by in later runs."""
        bias = self.module.bias if isinstance(self.module.bias, Tensor) else None
        return fingerprint(self.spec, self.weight, bias, self.moments, self.seed)

    def asked(
        self, names: Sequence[str], offered: Sequence[str] | Mapping[str, Iterable[Key]]
    ) -> dict[Key, tuple[list[Rank], list[str]]]:
        """The curves to be made: their ranks, and for which of the names that share the weight."""
        if not isinstance(offered, Mapping):
            lines = {key: line for method in offered for key, line in self.lines(method).items()}
            return {key: (line, list(names)) for key, line in lines.items()}
        some = dict.fromkeys(key[0] for name in names for key in offered[name])
        lines = {key: line for method in some for key, line in self.lines(method).items()}
        near = {name: {nearest(key, lines) for key in offered[name]} for name in names}
        asking = {key: [name for name in names if key in near[name]] for key in lines}
        return {key: (line, asking[key]) for key, line in lines.items() if asking[key]}

    def lines(self, name: str) -> dict[Key, list[Rank]]:
        """Ranks of a method that save MACs, the cheapest first, by the curves they are on."""
        method = methods.get(name)
        lines: dict[Key, list[Rank]] = {}
        for rank in method.ladder(self.spec, step=STEP, count=maxsize):
            for variant in method.variants_of(self.spec):
                key = name, variant, family_of(method, self.spec, rank)
                if macs_of(self.spec, key, rank) < self.spec.macs:
                    lines.setdefault(key, []).append(rank)
        return lines

    def errors(
        self, key: Key, line: list[Rank], tell: Callable[[Fit], None] | None
    ) -> dict[Rank, float]:
        """Relative squared errors by the rank."""
        method, variant, moments = methods.get(key[0]), key[1], self.moments
        if isinstance(method, SvdMethod) and moments is None and (not tell or self.stand_in):
            values = singular_values(method.matrix(self.weight, variant))
            ranks = {self._within(key, line, share) for share in FINE}
            return {rank: discarded_share(values, rank[0]) ** 2 for rank in ranks}
        shares = SHARES if moments and not self.stand_in else ROUGH
        ranks = {self._within(key, line, share) for share in shares}
        if self.stand_in and moments is None:
            known = {rank: method.predicted_error(self.weight, rank, variant) for rank in ranks}
            if None not in known.values():
                return {rank: (error or 0.0) ** 2 for rank, error in known.items()}
        if self.stand_in is None:
            return {rank: self._fitted(key, rank, tell) for rank in ranks}
        small = self.stand_in(method.stages(self.spec, line[0], variant))
        return {
            rank: small.error(self.spec, method, rank, variant, seed=self.seed) for rank in ranks
        }

    def probe(self, tell: Callable[[Fit], None]) -> None:
        """Tell kernels by which to see how far errors reach, whatever methods are offered."""
        # What a large layer is fitted by has to have a closed form in any norm.
        first = "channel_svd" if self.stand_in else "spatial_svd"
        order = sorted(methods.names(), key=lambda name: name != first)
        lines = next(filter(None, map(self.lines, order)), {})
        for key, line in list(lines.items())[:1]:
            for rank in sorted({self._within(key, line, share) for share in SHARES}):
                self._fitted(key, rank, lambda fit: tell(replace(fit, key=None)))

    def _fitted(self, key: Key, rank: Rank, tell: Callable[[Fit], None] | None) -> float:
        """The error of a fit of the layer itself."""
        layer = LayerPlan(self.spec, key[0], rank, key[1])
        if self.moments is None:
            made = methods.factorize(layer, self.weight, seed=self.seed)
        else:
            made = fit_layer(layer, self.module, self.moments, seed=self.seed)
        error = made.error**2
        if tell:
            kernel = chain_kernel(made.stages, made.weights)
            tell(Fit(key, macs_of(self.spec, key, rank), error, kernel, made.bias))
        return error

    def _within(self, key: Key, line: list[Rank], share: float) -> Rank:
        """The last rank of a line within a share of the MACs, or the first."""
        count = bisect_right(line, share * self.spec.macs, key=lambda r: macs_of(self.spec, key, r))
        return line[max(count - 1, 0)]


@dataclass(frozen=True)
class _Task:
    """A curve of a layer, or without a key its probe."""

    names: list[str]
    layer: _Layer
    key: Key | None = None
    line: list[Rank] = field(default_factory=list)
    errors: dict[Rank, float] | None = None  # of an earlier run


def _arriving(
    model: nn.Module,
    specs: Mapping[str, ConvSpec],
    calibration: Iterable[tuple[str, LayerCalibration]] | None,
) -> Iterator[tuple[list[str], LayerCalibration | None]]:
    """Names that share a weight, once the moments of all are there."""
    sharing = shared_layers(model, {name: LayerPlan(spec) for name, spec in specs.items()})
    if calibration is None:
        yield from ((names, None) for name, names in sharing.items() if name == names[0])
        return
    waiting: dict[str, LayerCalibration] = {}
    for arrived, moments in calibration:
        waiting[arrived] = moments
        names = sharing.get(arrived, [])
        if names and all(name in waiting for name in names):
            yield names, summed([waiting.pop(name) for name in names])
