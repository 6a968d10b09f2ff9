"""Tells a run that diverges: its loss rises above that of knowing nothing."""

from __future__ import annotations

from dataclasses import dataclass

SMOOTHING = 0.9
EARLIEST = 20  # steps
BEGINNING = 128  # images: the loss of a small batch says little
RISEN = 4.0  # times what it was at first: so much of a loss counts in the beginning, no more
TWICE = 2.0
ALIKE, KNOWING = 0.95, 0.8  # shares of the blank loss


@dataclass
class Losses:
    """Running means of the loss of a run.

    Attributes
    ----------
    first
        Mean loss of the first images, before the weights have moved far.
    smooth, blank
        Of late: the loss, and that of a model that answers zeros, whatever the image.
    """

    first: float = 0.0
    smooth: float = 0.0
    blank: float = 0.0
    steps: int = 0
    images: int = 0

    def add(self, loss: float, blank: float, images: int) -> None:
        """Take one step's losses in."""
        if not self.steps:
            self.smooth, self.blank = loss, blank
        if self.images < BEGINNING:
            most = RISEN * max(self.first, blank) if self.images else loss
            seen = self.images + images
            self.first = (self.images * self.first + images * min(loss, most)) / seen
            self.images += images
        self.smooth += (1 - SMOOTHING) * (loss - self.smooth)
        self.blank += (1 - SMOOTHING) * (blank - self.blank)
        self.steps += 1

    def diverged(self, ends_epoch: bool) -> str | None:
        """Why the run is taken to diverge, or None.

        At any step: the loss is twice that of answering zeros, and twice the first one. After an
        epoch: it is that of answering zeros, where it began well below.
        """
        if self.steps < EARLIEST or self.images < BEGINNING:
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
