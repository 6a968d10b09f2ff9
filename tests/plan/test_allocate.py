"""The knapsack against brute force, and what a budget may be."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from factorize.errors import BudgetError
from factorize.plan import Budget
from factorize.plan.allocate import Candidate, UnreachableBudget, allocate

Tables = dict[str, list[Candidate]]


def random_case(seed: int, keys: int) -> tuple[Tables, dict[str, float]]:
    """Up to 5 layers of up to 5 candidates, and budgets that about a third of cases can't keep."""
    draw = random.Random(seed)
    whole = draw.random() < 0.5  # few distinct numbers: ties
    names = [f"cost{k}" for k in range(keys)]

    def number() -> float:
        return draw.randint(0, 6) if whole else draw.random()

    tables = {
        f"layer{i}": [
            Candidate({key: number() for key in names}, number(), index)
            for index in range(draw.randint(1, 5))
        ]
        for i in range(draw.randint(1, 5))
    }
    budgets = {}
    for key in names:
        least = sum(min(c.costs[key] for c in options) for options in tables.values())
        most = sum(max(c.costs[key] for c in options) for options in tables.values())
        budgets[key] = least + draw.uniform(-0.1, 0.9) * (most - least)
        if whole:
            budgets[key] = math.floor(budgets[key])
    return tables, budgets


def total(chosen: tuple[Candidate, ...] | list[Candidate], key: str) -> float:
    return sum(c.costs[key] for c in chosen)


def within(chosen: tuple[Candidate, ...] | list[Candidate], budgets: dict[str, float]) -> bool:
    return all(total(chosen, key) <= budget + 1e-9 for key, budget in budgets.items())


@pytest.mark.parametrize("keys", [1, 2, 3])
def test_the_choice_is_the_best_there_is(keys: int) -> None:
    feasible = 0
    for seed in range(200):
        tables, budgets = random_case(seed, keys)
        possible = [c for c in itertools.product(*tables.values()) if within(c, budgets)]
        if not possible:
            with pytest.raises(UnreachableBudget):
                allocate(tables, budgets)
            continue
        feasible += 1
        chosen = allocate(tables, budgets)
        assert list(chosen) == list(tables)
        assert all(chosen[name] in options for name, options in tables.items())
        picked = list(chosen.values())
        assert within(picked, budgets)
        best = min(sum(c.loss for c in choice) for choice in possible)
        assert sum(c.loss for c in picked) == pytest.approx(best, abs=1e-9)
    assert 60 <= feasible <= 199  # both sides are tested


@pytest.mark.parametrize("keys", [1, 2, 3])
def test_what_can_be_reached_is_the_nearest_there_is(keys: int) -> None:
    refused = 0
    for seed in range(150):
        tables, budgets = random_case(seed, keys)
        budgets = {key: max(0.4 * budget, 0.1) for key, budget in budgets.items()}

        def excess(chosen: tuple[Candidate, ...], budgets: dict[str, float] = budgets) -> float:
            return max(total(chosen, key) / budget for key, budget in budgets.items())

        try:
            allocate(tables, budgets)
        except UnreachableBudget as error:
            refused += 1
            nearest = min(map(excess, itertools.product(*tables.values())))
            reached = max(error.reachable[key] / budgets[key] for key in budgets)
            assert reached == pytest.approx(nearest)
            assert reached > 1
            allocate(tables, error.reachable)  # it can indeed be reached
    assert refused > 30


def test_a_large_net_is_near_the_bound() -> None:
    """60 layers, 150 candidates, 2 budgets: too many to be exact about."""
    draw = random.Random(0)
    tables: Tables = {}
    for layer in range(60):
        size, weight = draw.uniform(0.2, 2), 10 ** draw.uniform(-2, 0)
        options = [Candidate({"macs": size, "ms": size}, 0.0)]
        for share in (draw.uniform(0.05, 1) for _ in range(150)):
            loss = weight * math.exp(-4 * share) * draw.uniform(0.5, 2)
            ms = size * share * draw.uniform(0.8, 1.6)
            options.append(Candidate({"macs": size * share, "ms": ms}, loss))
        tables[str(layer)] = options
    dense = sum(options[0].costs["macs"] for options in tables.values())
    budgets = {"macs": 0.4 * dense, "ms": 0.5 * dense}
    chosen = list(allocate(tables, budgets).values())
    assert within(chosen, budgets)
    # Weak duality: at any prices, each layer on its own gives a bound from below.
    bound = max(
        sum(
            min(c.loss + p * c.costs["macs"] + q * c.costs["ms"] for c in options)
            for options in tables.values()
        ) - p * budgets["macs"] - q * budgets["ms"]
        for p, q in itertools.product([i / 50 for i in range(15)], repeat=2)
    )  # fmt: skip
    assert bound > 0
    assert sum(c.loss for c in chosen) <= 1.05 * bound


def test_layers_that_are_alike_do_not_crowd_out_better_choices() -> None:
    """As the blocks of a residual net are; exact here, by dynamic programming over the budget."""
    draw, layers, budget = random.Random(7), 20, 126
    losses = {m: math.exp(-m / 4) * draw.uniform(0.8, 1.25) for m in range(1, 13)} | {14: 0.0}
    options = [Candidate({"macs": macs}, loss) for macs, loss in losses.items()]
    chosen = allocate({str(i): options for i in range(layers)}, {"macs": budget})
    least = [0.0] * (budget + 1)  # loss of the layers so far, by what may be spent
    for _ in range(layers):
        least = [
            min((least[spend - macs] + loss for macs, loss in losses.items() if macs <= spend),
                default=math.inf)
            for spend in range(budget + 1)
        ]  # fmt: skip
    assert sum(c.loss for c in chosen.values()) == pytest.approx(least[budget])


def test_of_equal_losses_the_cheaper_is_taken() -> None:
    tables = {"a": [Candidate({"macs": 5}, 1.0), Candidate({"macs": 2}, 1.0)],
              "b": [Candidate({"macs": 4}, 0.0), Candidate({"macs": 1}, 0.5)]}  # fmt: skip
    chosen = allocate(tables, {"macs": 9})
    assert [c.costs["macs"] for c in chosen.values()] == [2, 4]


def test_costs_without_a_budget_do_not_count() -> None:
    tables = {"a": [Candidate({"macs": 5, "params": 1000}, 0.0), Candidate({"macs": 2}, 1.0)]}
    assert allocate(tables, {"macs": 5})["a"].loss == 0.0
    assert allocate(tables, {})["a"].loss == 0.0


def test_budget_that_is_the_sum_in_another_order_is_kept() -> None:
    draw = random.Random(0)
    for _ in range(20):
        costs = [draw.random() for _ in range(30)]
        tables = {str(i): [Candidate({"ms": cost}, 0.0)] for i, cost in enumerate(costs)}
        draw.shuffle(costs)
        assert len(allocate(tables, {"ms": sum(costs)})) == 30


def test_numbers_of_any_size() -> None:
    """Losses and costs 1e±12 apart, with budgets of 0 and below."""
    draw = random.Random(0)
    for _ in range(30):
        loss, cost = 10 ** draw.uniform(-12, 12), 10 ** draw.uniform(-12, 12)
        tables = {
            str(i): [
                Candidate({"a": cost * draw.random(), "b": 0}, loss * draw.random() ** 20)
                for _ in range(4)
            ] for i in range(4)
        }  # fmt: skip
        least = sum(min(c.costs["a"] for c in options) for options in tables.values())
        chosen = list(allocate(tables, {"a": 1.2 * least, "b": 0}).values())
        budgets = {"a": 1.2 * least * (1 + 1e-9)}
        possible = [
            sum(c.loss for c in choice) for choice in itertools.product(*tables.values())
            if total(choice, "a") <= budgets["a"]
        ]  # fmt: skip
        assert sum(c.loss for c in chosen) == pytest.approx(min(possible), rel=1e-9)
        for budget in (0.0, -1.0, 1e-9 * least):
            with pytest.raises(UnreachableBudget) as caught:
                allocate(tables, {"a": budget})
            assert caught.value.reachable["a"] == pytest.approx(least)


def test_budget_out_of_reach_says_what_is_not() -> None:
    tables = {"a": [Candidate({"macs": 3}, 0.1), Candidate({"macs": 5}, 0.0)],
              "b": [Candidate({"macs": 4}, 0.2)]}  # fmt: skip
    assert allocate(tables, {"macs": 7})["a"].costs["macs"] == 3
    assert allocate(tables, {"macs": 9})["a"].costs["macs"] == 5
    with pytest.raises(BudgetError, match="macs must be at least 7, got 6") as caught:
        allocate(tables, {"macs": 6})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "at least one limit must be given"),
        ({"speedup": 0.9}, "speedup must be a number of at least 1, got 0.9"),
        ({"speedup": math.inf}, "speedup must .* got inf"),
        ({"speedup": True}, "speedup must .* got True"),
        ({"speedup": "2"}, "speedup must .* got '2'"),
        ({"macs": 0}, r"macs must be a share in \(0, 1\], got 0"),
        ({"macs": 1.5}, "macs must .* got 1.5"),
        ({"macs": math.nan}, "macs must .* got nan"),
        ({"params": 50}, "params must .* got 50"),
        ({"params": False}, "params must .* got False"),
        ({"max_drop": -0.1}, "max_drop must be .* got -0.1"),
        ({"max_drop": math.nan}, "max_drop must .* got nan"),
        ({"macs": 0.5, "params": -1}, "params must .* got -1"),
    ],
)
def test_budgets_out_of_range(limits: dict[str, float], message: str) -> None:
    with pytest.raises(BudgetError, match=message) as caught:
        Budget(**limits)
    assert "\n" not in str(caught.value)


def test_budgets_at_the_border_and_together() -> None:
    assert str(Budget(speedup=1)) == "1x"
    assert str(Budget(max_drop=0)) == "a drop of at most 0"
    budget = Budget(speedup=2.5, macs=0.5, params=1.0)
    assert str(budget) == "2.5x, 50 % of MACs, 100 % of parameters"


def test_time_decides_only_where_it_is_asked_for() -> None:
    assert Budget(speedup=2).timed
    assert Budget(max_drop=1.0, macs=0.5).timed
    assert not Budget(macs=0.5, params=0.5).timed
