"""``--plan``: what is wrong with a plan names its file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from factorize.errors import FactorizeError, PlanError, RankError, UnsupportedLayerError
from factorize.plan import check_layer, load_plan
from factorize.types import Plan


def read(path: Path) -> Plan:
    """The plan, its methods and ranks checked before anything else is read.

    Raises
    ------
    PlanError, RankError, UnsupportedLayerError
        What is wrong, in which file.
    """
    plan = load_plan(path)
    with named(path, PlanError, RankError, UnsupportedLayerError):
        for layer in plan.factorized:
            check_layer(layer)
    return plan


@contextmanager
def named(path: Path | None, *kinds: type[FactorizeError]) -> Iterator[None]:
    """Errors of a plan are told with its file, where there is one."""
    try:
        yield
    except FactorizeError as error:
        if not isinstance(error, kinds or PlanError):
            raise
        if path is not None and not str(error).startswith(str(path)):
            error.args = (f"{path}: {error}",)
        raise
