"""Only chains that may be chosen are fitted, and what is chosen is known by fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import pytest
import torch
from searching import EXAMPLE, Residual, images
from torch import nn

from factorize.plan import Budget, UnreachableBudget, allocate
from factorize.search import narrowing
from factorize.search.curves import LEARNED, UNKNOWN
from factorize.search.error_curve import Key
from factorize.search.layer_errors import LayerErrors
from factorize.search.narrowing import settled
from factorize.search.offers import Layer, Offer
from factorize.search.prepare import prepare
from factorize.search.tables import Tables
from factorize.spec import Rank

# In a search


def wide() -> nn.Module:
    """Five layers, four of which aren't the first."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()]
    for width in (32, 32, 40, 40):
        before = layers[-2].out_channels  # type: ignore[union-attr]
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]  # type: ignore[arg-type]
    return nn.Sequential(*layers).eval()


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Key, Rank]]:
    """What is fitted, in order."""
    done: list[tuple[str, Key, Rank]] = []
    real = LayerErrors.fitted

    def fitted(self: LayerErrors, key: Key, rank: Rank) -> Any:
        done.append((self.spec.name, key, rank))
        return real(self, key, rank)

    monkeypatch.setattr(LayerErrors, "fitted", fitted)
    return done


METHODS = ["cp", "tucker2", "spatial_svd", "grouped"]


@pytest.mark.parametrize("data", [False, True])
def test_far_fewer_chains_are_fitted_than_are_offered(
    fits: list[tuple[str, Key, Rank]], data: bool
):
    search = prepare(wide(), EXAMPLE, names=METHODS, data=images() if data else None)
    losses, layers = search.tables.losses, search.tables.layers
    known = len(fits)  # SVDs without data
    assert known == 0 or not data
    chosen = search.choose(Budget(macs=0.5)).plan.factorized
    assert chosen
    for layer in chosen:
        offers = layers[layer.spec.name].offers
        (offer,) = [o for o in offers if (o.method, o.rank, o.variant) ==
                    (layer.method, layer.rank, layer.variant)]  # fmt: skip
        assert losses.doubt(layer.spec.name, offer) == 1  # fitted, or near a fit
    made = fits[known:]
    offered = sum(len(layer.offers) for layer in layers.values())
    kinds = {(name, losses.key(name, o)) for name, layer in layers.items() for o in layer.offers}
    assert 0 < len(made) < offered / 10
    assert len({one[:2] for one in made}) < len(kinds)
    assert max(Counter(made).values()) == 1  # none twice
    before = len(fits)
    search.choose(Budget(macs=0.48))
    assert len(fits) - before < len(made)  # most are known by now


def test_the_choice_is_nearly_as_good_as_if_all_chains_were_fitted():
    options: dict[str, Any] = {"names": ["tucker2", "spatial_svd"], "data": images()}
    every = prepare(Residual().eval(), EXAMPLE, **options).tables
    every.losses.fit((name, o) for name, layer in every.layers.items() for o in layer.offers)
    best = every.candidates()
    for macs in (0.7, 0.5, 0.35):
        few = prepare(Residual().eval(), EXAMPLE, **options).tables
        limits = few.limits(Budget(macs=macs))
        least = sum(one.loss for one in allocate(best, limits).values())
        true = 0.0
        for name, one in settled(few, few.candidates, limits).items():
            (same,) = [other for other in best[name] if other.choice == one.choice]
            true += same.loss
        assert least * (1 - 1e-9) <= true <= 1.1 * least


# By known losses


class Known:
    """Stands for losses: estimates, which a fit replaces by the truth."""

    def __init__(self, doubt: float = UNKNOWN) -> None:
        self.truth: dict[Offer, float] = {}
        self.estimated: dict[Offer, float] = {}
        self.rounds: list[list[tuple[str, Offer]]] = []
        self._doubt = doubt

    def loss(self, name: str, offer: Offer) -> float:
        return (self.estimated if self.doubt(name, offer) > 1 else self.truth)[offer]

    def doubt(self, name: str, offer: Offer) -> float:
        done = any((name, offer) in one for one in self.rounds)
        return 1.0 if done else self._doubt

    def key(self, name: str, offer: Offer) -> Key:
        return offer.method, offer.variant, ()

    def fit(self, asked: Iterable[tuple[str, Offer]]) -> None:
        self.rounds.append(list(asked))


def made_up(
    layers: Mapping[str, Sequence[tuple[str, float, float]]], known: Known
) -> tuple[Tables, Any]:
    """Layers of 100 MACs, and for each (method, estimated, true) a chain of 50."""
    rank, found = count(1), {}
    for name, chains in layers.items():
        offers = []
        for method, estimated, true in chains:
            offer = Offer(method, (next(rank),), "", 50, 0, time=1.0)
            known.estimated[offer], known.truth[offer] = estimated, true
            offers.append(offer)
        found[name] = Layer(None, (), tuple(offers), 100, 0, 0.0)  # type: ignore[arg-type]
    tables = Tables((), found, {}, known, 0.0, 100 * len(found), 0)  # type: ignore[arg-type]
    return tables, tables.candidates


def fitted(known: Known) -> set[tuple[str, str]]:
    return {(name, offer.method) for one in known.rounds for name, offer in one}


def test_what_may_lose_least_is_fitted_and_what_cannot_is_not():
    known = Known()
    layers = {"x": [("a", 1.0, 1.0), ("b", 2.0, 0.5), ("c", 2.6, 0.1)]}
    tables, offered = made_up(layers, known)
    (taken,) = settled(tables, offered, {"macs": 50}).values()
    assert taken.choice.method == "b"  # even if c turned out to lose 2.5 times less than estimated
    assert fitted(known) == {("x", "a"), ("x", "b")}
    assert len(known.rounds) <= 2


def test_what_is_chosen_after_a_disappointment_is_fitted_too():
    known = Known(1.2)
    layers = {"x": [("a", 1.0, 3.0), ("b", 1.5, 2.5), ("c", 2.0, 2.2)]}
    tables, offered = made_up(layers, known)
    (taken,) = settled(tables, offered, {"macs": 50}).values()
    assert taken.choice.method == "c"
    assert fitted(known) == {("x", "a"), ("x", "b"), ("x", "c")}
    assert taken.loss == 2.2


def test_where_the_budget_does_not_bind_nothing_is_fitted():
    known = Known()
    tables, offered = made_up({"x": [("a", 1.0, 1.0)]}, known)
    assert [one.choice for one in settled(tables, offered, {"macs": 100}).values()] == [None]
    assert known.rounds == []


def test_a_few_layers_tell_of_a_method_first():
    """Of a method that no fit tells of: only the layers where it promises most, and the choice."""
    known = Known()
    layers = {
        str(n): [("a", 1.0, 1.0), ("b", 1.1 + 0.1 * n, 9.0)] for n in range(LEARNED + 3)
    }  # fmt: skip
    tables, offered = made_up(layers, known)
    settled(tables, offered, {"macs": 50 * len(layers)})
    of_b = [[name for name, offer in one if offer.method == "b"] for one in known.rounds]
    assert of_b[0] == [str(n) for n in range(LEARNED)]
    assert {name for name, offer in known.rounds[0] if offer.method == "a"} == set(layers)


def test_fits_end_even_if_doubt_does_not(monkeypatch: pytest.MonkeyPatch):
    known = Known()
    monkeypatch.setattr(known, "doubt", lambda *_: 1.2)
    tables, offered = made_up({"x": [("a", 1.0, 3.0)]}, known)
    known.truth = known.estimated
    (taken,) = settled(tables, offered, {"macs": 50}).values()
    assert taken.choice.method == "a"
    assert len(known.rounds) == narrowing.ROUNDS


def test_a_budget_that_nothing_keeps_is_refused_before_any_fit():
    known = Known()
    tables, offered = made_up({"x": [("a", 1.0, 1.0)]}, known)
    with pytest.raises(UnreachableBudget):
        settled(tables, offered, {"macs": 49})
    assert known.rounds == []
