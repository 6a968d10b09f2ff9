"""The choices that a search compares, and which of them is taken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from factorize import methods
from factorize.fit import Fitted
from factorize.search.fits import HOLDOUT, Fits
from factorize.search.held_out import Losses, standard_error
from factorize.types import Plan, Speedup

MORE = 2000
"""Held-out images for nets that fewer do not tell apart."""

TOLD_APART = 2.0
"""Standard errors between two nets from which on one is better, at 95 % confidence: below, more
images are looked at."""

TIED = 1.0
"""Standard errors within which two nets are as good as each other, and the faster one is taken."""


@dataclass(frozen=True)
class Choice:
    """A plan, and what is predicted and known of it.

    Attributes
    ----------
    loss
        Predicted; comparable within one search.
    predicted
        Speedup of the net, by the times of its layers alone; None where nothing is timed.
    measured
        Speedup of the assembled net.
    """

    plan: Plan
    loss: float
    predicted: float | None = None
    measured: Speedup | None = None

    @property
    def measured_speedup(self) -> float:
        """The median."""
        assert self.measured is not None
        return self.measured.speedup

    @property
    def speed(self) -> float:
        """The best that is known of it, to compare choices within one budget.

        Of nets that were not timed and keep the same budget, the one of fewer convolutions is
        likely the faster.
        """
        if self.measured is not None:
            return self.measured.speedup
        chains = map(methods.chain_of, self.plan.factorized)
        return self.predicted or -sum(len(chain) - 1 for chain in chains)


@dataclass(frozen=True)
class Found:
    """The result of a search: a fitted plan, and every trial on the way to it.

    Attributes
    ----------
    loss
        Measured on held-out images where there are some, else predicted.
    """

    choice: Choice
    fitted: Fitted
    trials: tuple[dict[str, Any], ...]
    loss: float = 0.0


@dataclass
class Trials:
    """Choices by name, and what their nets lose on held-out images, as far as that was measured."""

    fits: Fits
    choices: dict[str, Choice] = field(default_factory=dict)
    losses: dict[str, Losses] = field(default_factory=dict)
    closer: dict[str, Losses] = field(default_factory=dict)  # on more images

    def judge(self, name: str) -> None:
        """Measure what a choice's net loses."""
        self.losses[name] = self.fits.losses(self.choices[name].plan, HOLDOUT)

    def loss(self, name: str) -> float | None:
        """Of a choice, on the most images that it was judged on."""
        losses = self.closer.get(name, self.losses.get(name))
        return None if losses is None else float(losses.mean())

    def best(self, names: Iterable[str]) -> str:
        """The choice of least loss; of those that images do not tell apart from it the fastest."""
        known = {name: self.losses[name] for name in names}
        close = _within(known, TOLD_APART)
        if len(close) > 1:
            for name in close:
                self.closer[name] = self.fits.losses(self.choices[name].plan, MORE)
            known = {name: self.closer[name] for name in close}
        return max(_within(known, TIED), key=lambda name: self.choices[name].speed)

    def error(self, name: str, taken: str) -> float | None:
        """Standard error of what a choice's net loses more than that which is taken."""
        for losses in (self.closer, self.losses):
            if name in losses and taken in losses:
                return standard_error(losses[name], losses[taken])
        return None

    def rows(self, taken: str) -> tuple[dict[str, Any], ...]:
        """For the report."""
        return tuple(
            {
                "tried": name,
                "taken": name == taken,
                "predicted_loss": choice.loss,
                "measured_loss": self.loss(name),
                "loss_error": self.error(name, taken),
                "predicted_speedup": choice.predicted,
                "measured_speedup": choice.measured.speedup if choice.measured else None,
            }
            for name, choice in self.choices.items()
        )


def _within(losses: dict[str, Losses], errors: float) -> list[str]:
    """Names whose loss is within so many standard errors of the least, that one first."""
    order = sorted(losses, key=lambda name: float(losses[name].mean()))
    least = losses[order[0]]
    return [
        name
        for name in order
        if name == order[0]
        or float((losses[name] - least).mean()) <= errors * standard_error(losses[name], least)
    ]
