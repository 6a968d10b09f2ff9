"""The search: one chain, or none, for each layer, within a budget, at the least loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import inf

from factorize.errors import BudgetError
from factorize.plan import Budget, Candidate, allocate
from factorize.search.assembled import Assembled
from factorize.search.fits import Fits
from factorize.search.narrowing import Candidates, settled
from factorize.search.recorded_nets import RecordedNets
from factorize.search.tables import Tables
from factorize.search.trials import Choice, Found, Trials
from factorize.system.stopwatch import Stopwatch
from factorize.types import LayerPlan

MARGIN = 1.02  # the speed aimed at, over the one asked for: another measurement will differ
TIMINGS = 5  # of assembled nets, at most, for one choice
CLOSE = 0.005  # of the layers' time: not worth another timing
LEAST_SHARE = 0.15
"""Of a layer's MACs: below it a layer loses more than its error predicts (`experiments/auto`), so
that less is offered only where the budget cannot be kept otherwise."""
STEPPED = 1.25
"""What ranks on the hardware's step may lose over what any ranks would, where no time is measured:
for ResNet-20 that is worth 3 % of its MACs, and its steps cost less."""
RIVALS = 1  # methods by themselves that the mix is measured against
RIVALRY = 1.25
"""Times the loss predicted of the mix; beyond it a method is not tried alone. Of 42 pairs of nets
(`experiments/auto`, `search`) the 8 beyond 1.2 times all lost at least as much as the mix."""
UNEVEN = 2.0
"""Ratio of what methods lose over what was predicted, from which on predictions are corrected:
smaller ones may be the chance of a fit."""


class Search:
    """Searches within budgets that share all that was computed.

    Parameters
    ----------
    assembled
        Times whole nets; None: nothing is timed.
    """

    def __init__(
        self,
        tables: Tables,
        fits: Fits,
        assembled: Assembled | RecordedNets | None,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self.tables, self.fits, self.assembled = tables, fits, assembled
        self._stopwatch = stopwatch or Stopwatch()
        self._gain = 1.0  # time that is really saved, over that which the layers' times predict

    def within(self, budget: Budget) -> Found:
        """The best that was found within a budget, `max_drop` left aside.

        Where there are images, what assembled nets really lose is measured: of the mix of all
        methods and of the most promising method by itself. Where one loses far more than predicted
        beside the other, losses are corrected by that, and the choice is made anew. Fitting takes
        minutes, and the speed of a machine drifts: the best is timed again then, to be told. It is
        not chosen anew, since a fit changes no shape: what is slower by now is the machine.

        Raises
        ------
        BudgetError
            There is none; the message says what there is.
        """
        mix = "all methods"
        trials = Trials(self.fits, {mix: self.choose(budget)})
        tried = trials.choices
        if not self.fits.can_judge:
            return self._found(trials, mix)
        for name in self._rivals(budget, tried[mix]):
            with suppress(BudgetError):
                tried[name] = self.choose(budget, only=name)
        for name in tried:
            trials.judge(name)
        factors = _factors(trials)
        if any(not 1 / UNEVEN <= factor <= UNEVEN for factor in factors.values()):
            name = f"{mix}, corrected"
            with suppress(BudgetError):  # another measurement than the first one
                choice = self.choose(budget, factors=factors)
                if choice.plan.layers not in [c.plan.layers for c in tried.values()]:
                    tried[name] = choice
                    trials.judge(name)
        best = trials.best(tried)
        if budget.speedup is not None:
            tried[best] = self._confirmed(tried[best], partial(_within, least=budget.speedup))
        return self._found(trials, best)

    def _confirmed(self, choice: Choice, enough: Callable[[Choice], bool]) -> Choice:
        """Timed again; by the median of three timings where the second is not as hoped for."""
        known = [choice, self.timed(choice)]
        if not enough(known[1]):
            known = sorted([*known, self.timed(choice)], key=lambda one: one.measured_speedup)
        return known[1]

    def choose(
        self, budget: Budget, *, only: str | None = None,
        factors: Mapping[str, float] | None = None,
    ) -> Choice:  # fmt: skip
        """The plan of least predicted loss, its speed measured where that is budgeted.

        Parameters
        ----------
        only
            The one method to use.
        factors
            What the predicted losses of methods are multiplied by.

        Raises
        ------
        BudgetError
            No plan keeps the budget.
        """
        steps = (True,) if self.assembled else (True, False)  # timed ranks are all on steps
        failure: BudgetError | None = None
        for least in (LEAST_SHARE, 0.0):
            found = []
            for stepped in steps:
                offered = partial(
                    self.tables.candidates, only, factors, least=least, stepped=stepped
                )
                try:
                    found.append(self._chosen(budget, offered))
                except BudgetError as error:
                    failure = error
            if found:
                on_steps, free = found[0], found[-1]
                return on_steps if on_steps.loss <= STEPPED * free.loss else free
        assert failure is not None
        raise failure

    def _chosen(self, budget: Budget, offered: Callable[[], Candidates]) -> Choice:
        limits = self.tables.limits(budget)
        with self.tables.telling(budget):
            if budget.speedup is None:
                return self._choice(settled(self.tables, offered, limits))
            quickest = self._quickest(offered, limits)
        fastest = best = None
        # Of the layers together: the time at which the net is as fast as asked for lies between
        # that of the fastest chains and that of no chains.
        dense = self.tables.dense("time")
        least = sum(candidate.costs["time"] for candidate in quickest.values())
        low, high = least, dense
        saved = self.tables.saved(budget.speedup * MARGIN)
        limit = min(max(dense - saved / self._gain, low), high)
        known: dict[tuple[LayerPlan, ...], Choice] = {}
        enough = partial(_within, least=budget.speedup, most=budget.speedup * MARGIN**2)
        for timing in range(TIMINGS):
            if timing == TIMINGS - 1 and best is None:
                limit = least
            chosen = settled(self.tables, offered, {**limits, "time": limit * (1 + 1e-9)})
            choice = self._choice(chosen)
            choice = known.get(choice.plan.layers) or self.timed(choice)
            if choice.plan.layers not in known and enough(choice):
                choice = self._confirmed(choice, enough)  # not by chance: it is fitted, for minutes
            known[choice.plan.layers] = choice
            speed = choice.measured_speedup
            self._learn(choice)
            if fastest is None or speed > fastest.measured_speedup:
                fastest = choice
            if speed >= budget.speedup:
                low = limit
                if best is None or choice.loss < best.loss:
                    best = choice
            else:
                high = limit
            if enough(choice) or high <= least or high - low < CLOSE * dense:
                break
            limit = dense - saved / self._gain
            if not low < limit < high:
                limit = (low + high) / 2
        assert fastest is not None
        if best is None:
            told = "measured" if fastest.measured and fastest.measured.runs else "predicted"
            raise BudgetError(
                f"--speedup {budget.speedup:g}: the most that was {told} on "
                f"{self.tables.target} is {fastest.measured_speedup:.2f}x, with "
                f"{len(fastest.plan.factorized)} layers replaced. Ask for less, or offer more "
                "layers with --include."
            )
        return best

    def _learn(self, choice: Choice) -> None:
        """Correct predictions by a measurement."""
        least = 1e-9 * self.tables.time
        predicted = max(self.tables.saved(choice.predicted or 1.0), least)
        self._gain = min(max(self.tables.saved(choice.measured_speedup) / predicted, 0.5), 2.0)

    def _rivals(self, budget: Budget, mixed: Choice) -> list[str]:
        """The methods that promise the least loss by themselves, in as much time as the mix."""
        names = {o.method for layer in self.tables.layers.values() for o in layer.offers}
        limits = self.tables.limits(budget)
        if budget.speedup is not None and mixed.predicted:
            saved = self.tables.saved(mixed.predicted)
            limits["time"] = max(self.tables.dense("time") - saved, 0.0)
        losses: dict[str, float] = {}
        for name in sorted(names) if len(names) > 1 else ():
            with suppress(BudgetError):
                chosen = allocate(self.tables.candidates(name), limits)
                losses[name] = sum(candidate.loss for candidate in chosen.values())
        close = [name for name in losses if losses[name] <= RIVALRY * mixed.loss]
        return sorted(close, key=lambda name: losses[name])[:RIVALS]

    def fastest(self, budget: Budget) -> Choice:
        """The plan of least time, by that of its layers, within the other limits of a budget."""
        with self.tables.telling(budget):
            chosen = self._quickest(self.tables.candidates, self.tables.limits(budget))
        return self.timed(self._choice(chosen))

    def _quickest(
        self, offered: Callable[[], Candidates], limits: Mapping[str, float]
    ) -> dict[str, Candidate]:
        """The choice of least time, all of it measured: no more than it takes can be kept to."""
        while not self.tables.confirm(chosen := _of_least_time(offered(), limits)):
            pass
        return chosen

    def _choice(self, chosen: Mapping[str, Candidate]) -> Choice:
        loss = sum(candidate.loss for candidate in chosen.values())
        predicted = self.tables.speedup(chosen) if self.assembled else None
        return Choice(self.tables.plan(chosen), loss, predicted)

    def timed(self, choice: Choice) -> Choice:
        """The choice with the speed of its net, assembled of chains that were not fitted yet."""
        assert self.assembled is not None
        with self._stopwatch.timed("time nets"):
            return replace(choice, measured=self.assembled.speedup(choice.plan.factorized))

    def _found(self, trials: Trials, taken: str) -> Found:
        choice = trials.choices[taken]
        if self.assembled and choice.measured is None:
            choice = self.timed(choice)
        loss = trials.loss(taken)
        return Found(
            choice, self.fits.of(choice.plan), trials.rows(taken),
            choice.loss if loss is None else loss,
        )  # fmt: skip


def _within(choice: Choice, least: float, most: float = inf) -> bool:
    return least <= choice.measured_speedup <= most


def _of_least_time(
    candidates: Mapping[str, list[Candidate]], limits: Mapping[str, float]
) -> dict[str, Candidate]:
    losing_time = {
        name: [replace(one, loss=one.costs["time"]) for one in offered]
        for name, offered in candidates.items()
    }
    chosen = allocate(losing_time, limits)
    return {
        name: next(o for o in candidates[name] if o.choice == candidate.choice)
        for name, candidate in chosen.items()
    }


def _factors(trials: Trials) -> dict[str, float]:
    """How much more each method loses than predicted, as far as nets of it alone tell.

    A method that was not tried alone is held to lose what the last mix lost.
    """
    ratios = {
        name: float(trials.losses[name].mean()) / max(choice.loss, 1e-12)
        for name, choice in trials.choices.items()
    }
    mixes = [ratio for name, ratio in ratios.items() if name.startswith("all methods")]
    return {name: r / max(mixes[-1], 1e-12) for name, r in ratios.items() if " " not in name}
