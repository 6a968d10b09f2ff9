"""From errors of layers to losses of the net, which add up over layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, log

import numpy as np

from factorize import methods
from factorize.search.error_curve import LEAST, Curve, Fit, curve_through, family_of, nearest
from factorize.search.replay import Replay
from factorize.spec import ConvSpec, Rank

PROBED = 0.3  # share of a layer's MACs at which its reach is measured
MOST = 1 - 1e-9  # relative squared error; beyond, nothing is left of the output


@dataclass
class Reaches:
    """How much of a layer's relative squared error comes out at the end of the net; label-free.

    Given to `curves` as `on_fit`, it runs the net once for each layer, with the probe that is
    nearest to the share of `PROBED`.
    """

    replay: Replay
    specs: Mapping[str, ConvSpec]
    by_name: dict[str, float] = field(default_factory=dict)
    distances: dict[str, float] = field(default_factory=dict)

    def __call__(self, name: str, fit: Fit) -> None:
        """Measure, if no probe was nearer."""
        distance = abs(fit.macs / self.specs[name].macs - PROBED)
        if fit.key is None and distance < self.distances.get(name, inf):
            self.distances[name] = distance
            moved = self.replay.change(name, fit.kernel, fit.bias)
            self.by_name[name] = moved / max(fit.error, LEAST)


@dataclass
class Divergences:
    """What the net's output loses by each kernel, as curves; label-free.

    Given to `curves` as `on_fit`, it runs the net with every kernel that was fitted.
    """

    replay: Replay
    fits: dict[str, list[tuple[Fit, float]]] = field(default_factory=dict)

    def __call__(self, name: str, fit: Fit) -> None:
        """Measure; kernels aren't kept."""
        lost = self.replay.divergence(name, fit.kernel, fit.bias)
        light = replace(fit, kernel=fit.kernel.new_empty(0), bias=None)
        self.fits.setdefault(name, []).append((light, lost))

    def curves(self, errors: Mapping[str, Sequence[Curve]]) -> dict[str, list[Curve]]:
        """Curves of divergences in place of those of errors.

        Where a method's errors are estimates, without kernels, those of the probes tell what an
        error is worth in its layer.
        """
        found: dict[str, list[Curve]] = {}
        for name, of_layer in errors.items():
            fits = self.fits.get(name, [])
            found[name] = []
            for curve in of_layer:
                measured = {fit.macs: lost for fit, lost in fits if fit.key == curve.key}
                worth = measured or dict(zip(curve.macs, self._worth(name, curve), strict=True))
                made = curve_through(curve.key, worth, most=inf)
                assert made is not None
                found[name].append(made)
        return found

    def _worth(self, name: str, curve: Curve) -> list[float]:
        """Divergences for errors: between those of the probes by powers, beyond proportional."""
        probes = sorted((fit.error, lost) for fit, lost in self.fits[name] if fit.key is None)
        x, y = np.log(np.maximum(np.array(probes).T, LEAST))
        error = np.log(curve.error)
        inside = np.clip(error, x[0], x[-1])
        return np.exp(np.interp(inside, x, np.maximum.accumulate(y)) + error - inside).tolist()


@dataclass(frozen=True)
class Loss:
    """What the net loses by a chain in one layer; the sum over layers is what a search minimises.

    Attributes
    ----------
    curves
        Of the layer: errors, or divergences.
    reach
        With errors: the negative logarithm of what is kept of the output's energy is multiplied
        by it (Zhang et al., TPAMI 2016, section 3.4, where the product of what the layers keep
        is maximised). None: the curves hold the loss itself.
    """

    spec: ConvSpec
    curves: Sequence[Curve]
    reach: float | None = 1.0

    def __call__(self, method: str, rank: Rank, variant: str, macs: float) -> float:
        """Infinite where the method has no curve for the layer."""
        family = family_of(methods.get(method), self.spec, rank)
        by_key = {curve.key: curve for curve in self.curves}
        key = nearest((method, variant, family), by_key)
        if key is None:
            return inf
        value = by_key[key].at(macs)
        return value if self.reach is None else -self.reach * log(1 - min(value, MOST))
