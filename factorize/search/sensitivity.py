"""How much of what a layer loses the net loses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, log

import numpy as np

from factorize.search.error_curve import LEAST, Fit, Key
from factorize.search.replay import Replay


@dataclass
class Reaches:
    """How much of a layer's relative squared error comes out at the end of the net; label-free.

    Given to `Curves` as `on_fit`, it runs the net once for each layer, with its probe.
    """

    replay: Replay
    by_name: dict[str, float] = field(default_factory=dict)
    probes: Sequence[float] = (0.3,)
    kernels: bool = False

    def __call__(self, name: str, fit: Fit) -> None:
        """Measure a probe."""
        if fit.key is None and fit.kernel is not None:
            moved = self.replay.change(name, fit.kernel, fit.bias)
            self.by_name[name] = moved / max(fit.error, LEAST)


@dataclass
class Divergences:
    """What the net's output loses by each kernel; label-free.

    Given to `Curves` as `on_fit`, it runs the net with every kernel that was fitted.
    """

    replay: Replay
    measured: dict[tuple[str, Key], dict[int, tuple[float, float]]] = field(default_factory=dict)
    probed: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    probes: Sequence[float] = (0.15, 0.35, 0.65)
    kernels: bool = True

    def __call__(self, name: str, fit: Fit) -> None:
        """Measure; kernels aren't kept."""
        if fit.kernel is None:
            return
        lost = self.replay.divergence(name, fit.kernel, fit.bias)
        if fit.key is None:
            self.probed.setdefault(name, []).append((fit.error, lost))
        else:
            self.measured.setdefault((name, fit.key), {})[fit.macs] = fit.error, lost

    def divergence(self, name: str, key: Key, macs: int, error: float) -> float:
        """For a chain whose error is known, or estimated.

        Between kernels of its kind it is interpolated; without any, the probes tell what an error
        is worth in the layer.
        """
        measured = self.measured.get((name, key), {})
        if macs in measured:
            return measured[macs][1]
        worth = self._worth(name, error)
        if not measured:
            return worth
        sizes = sorted(measured)
        off = [max(lost, LEAST) / self._worth(name, e) for e, lost in map(measured.get, sizes)]  # type: ignore[misc]
        return worth * float(np.exp(np.interp(log(macs), np.log(sizes), np.log(off))))

    def _worth(self, name: str, error: float) -> float:
        """Of an error: between those of the probes by powers, beyond proportional."""
        x, y = np.log(np.maximum(np.array(sorted(self.probed[name])).T, LEAST))
        at = log(max(error, LEAST))
        inside = min(max(at, x[0]), x[-1])
        return exp(float(np.interp(inside, x, np.maximum.accumulate(y))) + at - inside)
