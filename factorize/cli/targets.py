"""Where time is measured, from options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from factorize.errors import DataError
from factorize.measure import Recorded, Target, load_times, runtimes


def also_of(
    names: Sequence[str] | None, threads: int | None, batch: int, dtype: str
) -> tuple[Target, ...]:
    """Targets used as the first one is, as far as their runtimes have its dtype."""
    return tuple(
        Target(name, threads, batch, dtype if dtype in has else "float32")
        for name in names or ()
        for has in [runtimes.get(name.partition(":")[0]).dtypes]
    )


def recorded_of(
    times: Sequence[Path] | None, target: str | None, batch: int, dtype: str, compiled: bool
) -> Recorded | None:
    """The device that files are of, which is a target and says how it was used."""
    if not times:
        return None
    recorded = load_times(*times)
    same_batch = batch in (1, recorded.batch)
    if target not in (None, recorded.runtime) or dtype != "float32" or compiled or not same_batch:
        raise DataError(
            f"--times: the target is {recorded}. Leave out --target, --batch, --dtype and "
            "--compile."
        )
    return recorded
