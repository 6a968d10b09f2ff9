"""What a decomposition is: the `Method` class, the registry, and the chain it declares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from factorize.errors import UnsupportedLayerError
from factorize.methods.chain import shaped
from factorize.methods.refine import refine
from factorize.spec import ConvSpec, Rank
from factorize.tensor.norm import Norm

_registry: dict[str, Method] = {}

LEAST_SHARE = 0.05
"""Of a layer's MACs: chains that cost less are not worth trying, for what they lose."""

FEWEST_RUNGS = 3
"""With fewer ranks to choose from, the hardware's step gives way."""


class Method(ABC):
    """A way to replace one kernel by a chain of smaller ones.

    Weights are (O, I, *kernel), float64: one group's, and of a transposed convolution with its
    channels swapped, so that a method need not know of either. A subclass declares its chain by
    `stages`; the kernel that the chain composes to follows from it (`chain_kernel`), so the two
    cannot disagree.

    Attributes
    ----------
    name
        As on the command line.
    summary
        One line for ``--help-all``.
    variants
        Orders of the chain; the planner takes the one with the lower error.
    min_axes
        Spatial axes that a kernel must have; a linear layer has none.
    closed
        Whether the rank for an energy is read off a spectrum: no fits.
    searched
        Whether searches offer it: their timings and predictions know chains of convolutions.
    batched
        Whether its chain needs inputs with a batch axis.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    variants: ClassVar[tuple[str, ...]] = ("",)
    min_axes: ClassVar[int] = 1
    closed: ClassVar[bool] = False
    searched: ClassVar[bool] = True
    batched: ClassVar[bool] = False

    def supports(self, spec: ConvSpec) -> str | None:
        """None, or the reason why this layer cannot be factorized by this method."""
        if len(spec.kernel) < self.min_axes:
            axes = "a spatial axis" if self.min_axes == 1 else f"{self.min_axes} spatial axes"
            return f"{spec.kind}: {self.name} needs {axes}"
        return None

    def variants_of(self, spec: ConvSpec) -> tuple[str, ...]:
        """The variants whose chains differ on a layer: both orders of two 1x1 are one."""
        most = self.max_rank(spec)
        chains = {self.stages(spec, most, name): name for name in reversed(self.variants)}
        return tuple(reversed(chains.values()))

    @abstractmethod
    def max_rank(self, spec: ConvSpec) -> Rank:
        """The smallest rank at which some variant reproduces any kernel of this shape."""

    def rank_of(self, value: int, spec: ConvSpec) -> Rank:
        """The rank where one number is given for all of it; not yet clamped to the maximum."""
        return (value,) * len(self.max_rank(spec))

    def rank_on(self, rank: Rank, of: ConvSpec, small: ConvSpec) -> Rank:
        """The rank that loses as much on a layer of fewer channels: the same share of its limit."""
        limits = zip(rank, self.max_rank(of), self.max_rank(small), strict=True)
        return tuple(min(max(round(value * ours / top), 1), ours) for value, top, ours in limits)

    def ladder(self, spec: ConvSpec, *, step: int = 1, count: int = 12) -> tuple[Rank, ...]:
        """Ranks worth trying on a layer, cheapest first, evenly spread in the log of the MACs.

        They cost from `LEAST_SHARE` of the layer's MACs to just below all of them, in the first
        variant; a layer where none does, or which is not supported, has none.

        Parameters
        ----------
        step
            What the hardware wants channels to be multiples of. It is halved as long as fewer than
            `FEWEST_RUNGS` ranks are left.
        count
            About how many.
        """
        if self.supports(spec):
            return ()

        @cache
        def macs(rank: Rank) -> int:
            return sum(stage.macs for stage in self.stages(spec, rank, self.variants[0]))

        while True:
            lines = self.rank_lines(spec, step)
            each = -(-count // len(lines)) if lines else 0
            found = {r for line in lines for r in _spread(line, macs, spec.macs, each)}
            if len(found) >= min(FEWEST_RUNGS, count) or step == 1:
                return tuple(sorted(found, key=lambda rank: (macs(rank), rank)))
            step //= 2

    def rank_lines(self, spec: ConvSpec, step: int) -> list[list[Rank]]:
        """Lines of ranks, each rising in MACs, for `ladder` to choose from.

        Here one, on which all entries keep to the same share of their maxima, in multiples of
        the step; a maximum below the step is the entry itself.
        """
        limit = self.max_rank(spec)
        steps = [max(top // step, 1) for top in limit]
        most = max(steps)
        return [
            [
                tuple(
                    min(max(round(own * index / most), 1) * step, top)
                    for own, top in zip(steps, limit, strict=True)
                )
                for index in range(1, most + 1)
            ]
        ]

    @abstractmethod
    def stages(self, spec: ConvSpec, rank: Rank, variant: str) -> tuple[ConvSpec, ...]:
        """The chain's specs, first to last. Shapes only: costs nothing.

        Built with `link` and `stage`, which see to groups and to transposed convolutions.
        """

    @abstractmethod
    def decompose(
        self, weight: Tensor, rank: Rank, variant: str, *, seed: int
    ) -> tuple[Tensor, ...]:
        """The weights of `stages`, for a valid rank, in the identity norm."""

    def fit(
        self,
        weight: Tensor,
        rank: Rank,
        variant: str,
        *,
        stages: tuple[ConvSpec, ...],
        norm: Norm,
        seed: int,
    ) -> tuple[Tensor, ...]:
        """The weights of `stages` in a norm: the plain form, refined where the norm is not plain.

        A method overrides this where it has a closed form.
        """
        start = self.decompose(weight, rank, variant, seed=seed)
        if not norm.second:
            return start
        return refine(stages, shaped(stages, start), weight, norm)

    @abstractmethod
    def rank_for_energy(
        self, weight: Tensor, energy: float, variant: str, *, most: Rank, seed: int
    ) -> Rank:
        """The smallest rank that keeps a share of the kernel's squared norm.

        Where only fits can tell, none above ``most`` is tried: the answer is one more then.
        """

    @abstractmethod
    def rank_by_vbmf(self, weight: Tensor, variant: str) -> Rank:
        """The rank by variational Bayes; entries may be 0 (nothing but noise)."""

    def predicted_error(self, weight: Tensor, rank: Rank, variant: str) -> float | None:
        """Relative error before the fit, where a closed form tells it."""
        del weight, rank, variant
        return None

    def tensorly_form(self, weights: tuple[Tensor, ...]) -> Any:
        """The chain's weights, each of its stage's shape, as tensorly's object; None: it has none.

        Made by a function of `factorize.tensor.tensorly_form`. A method that has such a form says
        here of which arrangement of the kernel's axes it is.
        """
        del weights


def _spread(
    line: Sequence[Rank], macs: Callable[[Rank], int], layer_macs: int, count: int
) -> Sequence[Rank]:
    """About so many ranks of a line, from the least share of the layer's MACs to below all."""
    end = bisect_left(line, layer_macs, key=macs)
    start = min(bisect_left(line, LEAST_SHARE * layer_macs, key=macs), max(end - 1, 0))
    saving = line[start:end]
    if len(saving) <= count:
        return saving
    targets = np.geomspace(macs(saving[0]), macs(saving[-1]), count)
    picked = {min(bisect_left(saving, t, key=macs), len(saving) - 1) for t in targets}
    return [saving[index] for index in picked]


def register(method: Method) -> Method:
    """Make a method known everywhere by its name; a later one of the same name replaces it."""
    _registry[method.name] = method
    return method


def names() -> tuple[str, ...]:
    """Names of all registered methods, sorted."""
    return tuple(sorted(_registry))


def get(name: str, place: str = "--method") -> Method:
    """The method of that name.

    Parameters
    ----------
    place
        Where it stands, for the message.

    Raises
    ------
    UnsupportedLayerError
        No such method.
    """
    if name not in _registry:
        near = get_close_matches(str(name), names(), 1)
        fix = (
            f"Did you mean {near[0]}?"
            if near
            else "Correct the name, or import the file that registers it (--plugin FILE)."
        )
        raise UnsupportedLayerError(
            f"{place}: method must be one of {', '.join(names())}, got {name!r}. {fix}"
        )
    return _registry[name]
