"""What a search may spend, and what it must reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from numbers import Real

from factorize.errors import BudgetError


@dataclass(frozen=True)
class Budget:
    """Limits that the compressed net keeps, all that are given.

    Attributes
    ----------
    speedup
        Original over compressed time, as measured on the target; at least 1.
    macs, params
        Share of the whole net's that is left, in (0, 1].
    max_drop
        Largest loss on held-out training images, at least 0: in percentage points of top-1, or in
        the score of one's own.

    Raises
    ------
    BudgetError
        A value is out of range, or none is given.
    """

    speedup: float | None = None
    macs: float | None = None
    params: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if all(value is None for value in vars(self).values()):
            raise BudgetError(
                "budget: at least one limit must be given, got none. "
                "Give a speedup, a share of MACs or parameters, or a largest drop."
            )
        _check("speedup", self.speedup, "a number of at least 1", lambda x: x >= 1, "2")
        for name, share in (("macs", self.macs), ("params", self.params)):
            _check(name, share, "a share in (0, 1]", lambda x: 0 < x <= 1, "0.5 to keep half")
        _check("max_drop", self.max_drop, "a number of at least 0", lambda x: x >= 0, "1")

    @property
    def timed(self) -> bool:
        """Whether time decides, so that no layer may become slower."""
        return self.speedup is not None or self.max_drop is not None

    def __str__(self) -> str:
        parts = (
            self.speedup is not None and f"{self.speedup:g}x",
            self.macs is not None and f"{100 * self.macs:g} % of MACs",
            self.params is not None and f"{100 * self.params:g} % of parameters",
            self.max_drop is not None and f"a drop of at most {self.max_drop:g}",
        )
        return ", ".join(part for part in parts if part)


def _check(
    name: str, value: float | None, rule: str, keeps: Callable[[float], bool], example: str
) -> None:
    """Raise BudgetError unless the value is None or a finite number that keeps the rule."""
    number = isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
    if value is not None and not (number and keeps(float(value))):
        raise BudgetError(f"{name} must be {rule}, got {value!r}. Give for instance {example}.")
