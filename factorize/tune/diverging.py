"""Tells a run that diverges: its loss rises above that of knowing nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

SMOOTHING = 0.9
EARLIEST = 20  # steps
TWICE = 2.0
ALIKE, KNOWING = 0.95, 0.8  # shares of the blank loss


@dataclass
class Losses:
    """Running means of the loss of a run.

    Attributes
    ----------
    first
        Loss of the first step, before any weight has moved.
    smooth, blank
        Of late: the loss, and that of a model that answers zeros, whatever the image.
    """

    first: float = math.nan
    smooth: float = 0.0
    blank: float = 0.0
    steps: int = 0

    def add(self, loss: float, blank: float) -> None:
        """Take one step's losses in."""
        if not self.steps:
            self.first, self.smooth, self.blank = loss, loss, blank
        self.smooth += (1 - SMOOTHING) * (loss - self.smooth)
        self.blank += (1 - SMOOTHING) * (blank - self.blank)
        self.steps += 1

    def diverged(self, ends_epoch: bool) -> str | None:
        """Why the run is taken to diverge, or None.

        At any step: the loss is twice that of answering zeros, and twice the first one. After an
        epoch: it is that of answering zeros, where it began well below.
        """
        if self.steps < EARLIEST:
            return None
        if self.smooth > TWICE * max(self.blank, self.first):
            return (
                f"the loss rose from {self.first:.4g} to {self.smooth:.4g}, where always answering "
                f"zeros has {self.blank:.4g}"
            )
        if ends_epoch and self.first < KNOWING * self.blank and self.smooth > ALIKE * self.blank:
            return (
                f"the loss rose from {self.first:.4g} to {self.smooth:.4g}, that of always "
                "answering the same"
            )
        return None
