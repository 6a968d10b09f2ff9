"""What a unit of a budget is worth, and what no choice needs to look at."""

from __future__ import annotations

import random

import numpy as np
import pytest
from numpy.typing import NDArray

from factorize.plan import Candidate, prices
from factorize.plan.allocate import _undominated

# Prices


def convex(slopes: list[float], key: str = "macs") -> list[Candidate]:
    """A layer that loses so much by each unit that is taken away, of as many as there are."""
    losses = np.append(0.0, np.cumsum(slopes))
    return [Candidate({key: len(slopes) - n}, loss) for n, loss in enumerate(losses.tolist())]


@pytest.mark.parametrize(("budget", "price"), [(7.5, 1.0), (6.5, 2.0), (5.5, 3.0), (4.5, 4.0),
                                               (3.5, 10.0)])  # fmt: skip
def test_a_price_is_the_slope_at_which_loss_is_traded(budget: float, price: float):
    """Of 8 units the budget takes the least dear ones: they lose 1, 2, 3, 4, 10, ..."""
    layers = {"a": convex([1.0, 3.0, 10.0, 11.0]), "b": convex([2.0, 4.0, 20.0, 30.0])}
    assert prices(layers, {"macs": budget}) == {"macs": pytest.approx(price)}


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e12])
def test_prices_are_in_the_units_of_losses_and_costs(scale: float):
    layers = {"a": [Candidate({"macs": scale * c.costs["macs"]}, 5 * c.loss) for c in
                    convex([1.0, 3.0])]}  # fmt: skip
    found = prices(layers, {"macs": 0.5 * scale})
    assert found["macs"] == pytest.approx(5 * 3.0 / scale)


def test_what_does_not_bind_has_no_price():
    layers = {
        name: [Candidate({"macs": c.costs["macs"], "params": 1.0}, c.loss) for c in one]
        for name, one in (("a", convex([1.0, 3.0])), ("b", convex([2.0, 4.0])))
    }
    assert prices(layers, {"macs": 4.0})["macs"] == 0
    found = prices(layers, {"macs": 2.5, "params": 10.0})
    assert found == {"macs": pytest.approx(2.0), "params": 0}
    assert prices(layers, {}) == {}


def test_at_its_price_no_candidate_is_better_than_the_ones_that_are_mixed():
    """As the dual of the linear relaxation has it: nothing is lost by looking layer by layer."""
    draw = random.Random(0)
    for _ in range(20):
        layers = {
            str(n): [Candidate({"macs": draw.random()}, draw.random()) for _ in range(8)]
            for n in range(5)
        }
        least = sum(min(c.costs["macs"] for c in one) for one in layers.values())
        cheapest = sum(min(one, key=lambda c: c.loss).costs["macs"] for one in layers.values())
        budget = (least + cheapest) / 2
        (price,) = prices(layers, {"macs": budget}).values()
        assert price > 0

        def bound(price: float, budget: float = budget, layers: dict = layers) -> float:  # type: ignore[type-arg]
            return -price * budget + sum(
                min(c.loss + price * c.costs["macs"] for c in one) for one in layers.values()
            )

        assert bound(price) >= max(bound(0.99 * price), bound(1.01 * price)) - 1e-12


# What another candidate beats


def general(rows: NDArray[np.float64]) -> set[int]:
    """With a third column, that is the same everywhere."""
    return set(_undominated(np.column_stack([rows, np.ones(len(rows))])).tolist())


@pytest.mark.parametrize("whole", [True, False])
def test_of_loss_and_one_cost_the_same_is_kept_as_of_any(whole: bool):
    """Integers have ties, and rows that are equal, of which one is kept."""
    rng, counts = np.random.default_rng(0), set[int]()
    for size in (0, 1, 2, 3, 10, 40) * 20:
        rows = rng.integers(0, 5, (size, 2)).astype(float) if whole else rng.random((size, 2))
        found = _undominated(rows)
        assert len(set(found.tolist())) == len(found)
        assert set(found.tolist()) == general(rows)
        kept = rows[found]
        for row in rows:
            assert (kept <= row).all(1).any()
        for index, row in enumerate(kept):
            assert not (np.delete(kept, index, 0) <= row).all(1).any()
        counts.add(len(found))
    assert len(counts) > 3


@pytest.mark.parametrize("columns", [2, 3])
def test_of_no_rows_none_are_kept(columns: int):
    assert _undominated(np.zeros((0, columns))).tolist() == []
