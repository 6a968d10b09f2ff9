"""What chains lose on one layer: roughly, on a small stand-in, and by fits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from factorize import methods
from factorize.fit.layer import fit_layer
from factorize.graph import effective_weight
from factorize.methods import chain_kernel
from factorize.methods.svd import SvdMethod
from factorize.search.error_curve import Fit, Key, macs_of
from factorize.search.known import fingerprint
from factorize.search.reduced import Mixing, Reduced, is_large, mixing_of, reduced
from factorize.spec import ConvSpec, Rank
from factorize.tensor.effort import Effort, with_effort
from factorize.tensor.moments import LayerCalibration, centred, shrinkage, target_and_norm
from factorize.tensor.norm import Norm
from factorize.tensor.ranks import discarded_share
from factorize.tensor.svd import singular_values
from factorize.types import LayerPlan

ROUGH = 16
"""Channels on either side of the stand-ins that tell which chains are worth a fit."""


class LayerErrors:
    """One layer, what it is to be fitted to, and the relative squared errors of its chains.

    A layer of up to `reduced.LARGEST` channels is fitted itself. Of a larger one the errors of
    methods that are one SVD of the weight are exact without moments; others are those of a
    stand-in of so many channels, and the moments are not kept.

    Parameters
    ----------
    moments
        Of its inputs; None: it is fitted to its weight.
    offered
        Its chains, by kind, the cheapest rank first.
    probes
        Shares of the layer's MACs at which it is fitted for `probes`.
    kernels
        Whether every fit has to have a kernel, which an SVD does without.

    Attributes
    ----------
    probes
        Fits by which to see how far errors reach, whatever methods are offered.
    mark
        What the errors are known by in later runs.
    """

    def __init__(
        self,
        spec: ConvSpec,
        module: nn.Module,
        moments: LayerCalibration | None,
        offered: Iterable[tuple[Key, Sequence[Rank]]],
        *,
        probes: Sequence[float] = (),
        kernels: bool = False,
        seed: int = 0,
    ) -> None:
        self.spec, self.module, self.moments, self.seed = spec, module, moments, seed
        self.large = is_large(spec)
        self.weight = effective_weight(module).to("cpu", torch.float64)
        bias = module.bias if isinstance(module.bias, Tensor) else None
        self.mark = fingerprint(spec, self.weight, bias, moments, seed)
        # First, as each holds matrices of its own.
        self.probes = [fit for share in probes for fit in self._probe(share)]
        target, norm, inputs = self.weight, Norm(), Norm()
        if moments is not None:
            parts = moments
            if bias is not None:
                parts = LayerCalibration(centred(moments.fit), centred(moments.held_out))
            inputs = Norm(parts.fit.second)
            target, norm = target_and_norm(parts.fit, self.weight, shrinkage(parts))
        self._values: dict[tuple[str, str], Tensor] = {}  # singular ones, where they tell errors
        kinds = [(key, methods.get(key[0]).stages(spec, r[0], key[1])) for key, r in offered]
        if moments is None and (self.large or not kernels):
            for key, _ in kinds:
                if isinstance(method := methods.get(key[0]), SvdMethod):
                    self._values[key[:2]] = singular_values(method.matrix(self.weight, key[1]))
        mixings = dict.fromkeys(mixing_of(made) for key, made in kinds if not self.is_exact(key))
        self._large: dict[Mixing, Reduced] = {}
        if self.large:
            self._large = reduced(spec, target, norm, inputs, mixings)
            self._small = {m: one.smaller(m, ROUGH) for m, one in self._large.items()}
        else:
            self._small = reduced(spec, target, norm, inputs, mixings, ROUGH)
        if self.large:
            self.moments = None

    def is_exact(self, key: Key) -> bool:
        """Whether errors of this kind are known without a fit."""
        return key[:2] in self._values

    def rough(self, key: Key, rank: Rank) -> float:
        """The error at a rank, to within a factor of two or three."""
        with with_effort(Effort.ROUGH):
            return self._estimated(self._small, key, rank)

    def fitted(self, key: Key, rank: Rank) -> Fit:
        """The error at a rank; without a kernel where there was no need for one."""
        macs = macs_of(self.spec, key, rank)
        if self.is_exact(key):
            return Fit(key, macs, discarded_share(self._values[key[:2]], rank[0]) ** 2)
        if self.large:
            return Fit(key, macs, self._estimated(self._large, key, rank))
        return self._fit(key, rank)

    def _estimated(self, stand_ins: dict[Mixing, Reduced], key: Key, rank: Rank) -> float:
        method, variant = methods.get(key[0]), key[1]
        stand_in = stand_ins[mixing_of(method.stages(self.spec, rank, variant))]
        return stand_in.error(self.spec, method, rank, variant, seed=self.seed)

    def _probe(self, share: float) -> list[Fit]:
        # What a large layer is fitted by has to have a closed form in any norm.
        first = "channel_svd" if self.large else "spatial_svd"
        for name in sorted(methods.names(), key=lambda name: name != first):
            ranks = methods.get(name).ladder(self.spec, step=8, count=60)
            key = name, methods.get(name).variants[0], ()
            if saving := [r for r in ranks if macs_of(self.spec, key, r) < self.spec.macs]:
                limit = share * self.spec.macs
                within = [r for r in saving if macs_of(self.spec, key, r) <= limit]
                return [replace(self._fit(key, (within or saving[:1])[-1]), key=None)]
        return []

    def _fit(self, key: Key, rank: Rank) -> Fit:
        """A fit of the layer itself."""
        layer = LayerPlan(self.spec, key[0], rank, key[1])
        if self.moments is None:
            made = methods.factorize(layer, self.weight, seed=self.seed)
        else:
            made = fit_layer(layer, self.module, self.moments, held_out=False, seed=self.seed)
        kernel = chain_kernel(made.stages, made.weights)
        return Fit(key, macs_of(self.spec, key, rank), made.error**2, kernel, made.bias)
