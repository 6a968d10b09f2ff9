"""What time is measured on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from factorize.errors import DeviceError
from factorize.measure import Target, runtimes


def as_targets(
    target: Target | str | None, also: Target | str | Sequence[Target | str], threads: int | None
) -> list[Target | None]:
    """The target of a run, None where there is none, and the others."""
    also = (also,) if isinstance(also, Target | str) else also
    if also and target is None:
        target = Target(threads=threads)
    return list(map(as_target, (target, *also)))


def as_target(target: Target | str | None) -> Target | None:
    """A target; the name of a runtime is one."""
    if target is None or isinstance(target, Target):
        return target
    if isinstance(target, str):
        return Target(target)
    raise DeviceError(
        f'target: must be a Target or the name of one, got {target!r}. Give Target("onnxruntime").'
    )


def computing(targets: Iterable[Target | None], int8: object) -> list[Target | None]:
    """The same, of a run whose result computes in integers or does not.

    Raises
    ------
    DeviceError
        The targets do otherwise.
    """
    if int8:
        return [in_int8(one) for one in targets]
    if any(one.dtype == "int8" for one in targets if one):
        raise DeviceError("target: int8 is for a result that computes in it. Give int8 (--int8).")
    return list(targets)


def in_int8(target: Target | None) -> Target | None:
    """The target of a run whose result computes in integers.

    Raises
    ------
    DeviceError
        Its runtime has no integers.
    """
    if target is None or "int8" in runtimes.get(target.runtime).dtypes:
        return replace(target, dtype="int8") if target else None
    able = [name for name in runtimes.names() if "int8" in runtimes.get(name).dtypes]
    raise DeviceError(
        f"--int8: must be timed on a target that computes in integers, {' or '.join(able)}, got "
        f"{target.runtime}. Give --target {able[0]}."
    )


def timed_on(
    target: Target | None, device: str, threads: int | None, batch: int, int8: object = False
) -> list[Target]:
    """What to measure the two models on; the first is the one that the run is about."""
    if target is not None:
        return [target]
    first = Target(threads=threads, batch=batch)
    known = sorted(map(runtimes.get, runtimes.names()), key=lambda one: one.device)  # cpu first
    beside = [one.name for one in known if one.reported and one.device in ("cpu", device)]
    names = dict.fromkeys((first.runtime, *beside))
    main, *others = [replace(first, runtime=name) for name in names]
    return [replace(main, dtype="int8") if int8 else main, *others]
