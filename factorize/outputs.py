"""What a model's outputs mean: the kinds that are told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from factorize.errors import DataError

OUTPUT_KINDS = ("logits", "multilabel", "values", "embedding")


@dataclass(frozen=True)
class Outputs:
    """What a model's outputs mean, and so how those of two models are compared.

    Attributes
    ----------
    kind
        ``logits`` of classes on axis 1, ``multilabel`` logits, ``values`` (regressions, images,
        boxes), ``embedding`` (their direction counts). ``auto``: a guess, which is told.
    loss
        ``(student's output, original's output, batch) -> Tensor``: lowered by tuning, and what
        recalibrated and searched nets are compared by, in place of the kind's distance.
    score
        ``(student's output, original's output, batch) -> float`` for a batch, which the report
        has the mean of, the best epoch is chosen by and ``max_drop`` is in. Set its attribute
        ``higher_is_better = False`` where that is so.

    Raises
    ------
    DataError
        There is no such kind.
    """

    kind: str = "auto"
    loss: Callable[[Any, Any, Any], Tensor] | None = None
    score: Callable[[Any, Any, Any], Any] | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("auto", *OUTPUT_KINDS):
            raise DataError(
                f"outputs: must be auto or one of {', '.join(OUTPUT_KINDS)}, got {self.kind!r}. "
                "Correct it."
            )

    @property
    def score_name(self) -> str:
        """Of the score, for the report."""
        return getattr(self.score, "__name__", type(self.score).__name__)

    @property
    def sign(self) -> int:
        """1 where a higher score is better, else -1."""
        return 1 if getattr(self.score, "higher_is_better", True) else -1


UNDECLARED = Outputs()
