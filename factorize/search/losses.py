"""What the net loses by each chain, as well as is known; the losses of layers add up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import log

from factorize import methods
from factorize.search.curves import Curves
from factorize.search.error_curve import Key, family_of, macs_of
from factorize.search.offers import Layer, Offer
from factorize.search.sensitivity import Divergences, Reaches
from factorize.spec import ConvSpec, Rank
from factorize.system.stopwatch import Stopwatch

MOST = 1 - 1e-9  # relative squared error; beyond, nothing is left of the output


class Losses:
    """The loss that each chain of a layer adds: what a search minimises the sum of.

    It is the negative logarithm of what is kept of the output's energy, times the layer's reach
    (Zhang et al., TPAMI 2016, section 3.4, where the product of what the layers keep is
    maximised); or a divergence that was measured.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        curves: Curves,
        watch: Divergences | Reaches | None,
        stopwatch: Stopwatch,
    ) -> None:
        self._curves, self._watch, self._stopwatch = curves, watch, stopwatch
        # MACs of one use of the layer; those of the offer are of all.
        self._places = {
            (name, offer): (key, macs_of(layer.spec, key, offer.rank))
            for name, layer in layers.items()
            for offer in layer.offers
            for key in [key_of(layer.spec, offer)]
        }
        self._known: dict[tuple[str, Offer], float] = {}

    def error(self, name: str, offer: Offer) -> float:
        """Relative squared error of the layer's output."""
        return self._curves.error(name, *self._places[name, offer])

    def loss(self, name: str, offer: Offer) -> float:
        """What the net loses."""
        if (name, offer) not in self._known:
            self._known[name, offer] = self._loss(name, offer)
        return self._known[name, offer]

    def doubt(self, name: str, offer: Offer) -> float:
        """The factor by which the loss may be lower; 1: a fit tells it."""
        return self._curves.doubt(name, *self._places[name, offer])

    def key(self, name: str, offer: Offer) -> Key:
        """The kind of a chain."""
        return self._places[name, offer][0]

    def fit(self, asked: Iterable[tuple[str, Offer]]) -> None:
        """Fit chains to their layers, so that there is no doubt of what these lose."""
        with self._stopwatch.timed("fit chains"):
            self._curves.fit(
                (name, self._places[name, offer][0], offer.rank) for name, offer in asked
            )
        self._known.clear()

    def _loss(self, name: str, offer: Offer) -> float:
        error = self.error(name, offer)
        if isinstance(self._watch, Divergences):
            return self._watch.divergence(name, *self._places[name, offer], error)
        reach = self._watch.by_name[name] if self._watch else 1.0
        return -reach * log(1 - min(error, MOST))


def key_of(spec: ConvSpec, offer: Offer) -> Key:
    """The kind of a layer's chain: its method, variant and family."""
    return offer.method, offer.variant, family_of(methods.get(offer.method), spec, offer.rank)


def kinds_of(layer: Layer) -> dict[Key, list[Rank]]:
    """What is offered for a layer, by kind, the cheapest rank first."""
    kinds: dict[Key, list[Rank]] = {}
    for offer in sorted(layer.offers, key=lambda offer: offer.macs):
        kinds.setdefault(key_of(layer.spec, offer), []).append(offer.rank)
    return kinds
