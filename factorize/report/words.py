"""How values and findings are worded, on the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from factorize.report.curve import ALONE
from factorize.report.record import CONTROL, CUT_SHORT, LayerReport, Report, SearchReport
from factorize.types import Speedup

_PERCENT = {"top1": "top-1", "top5": "top-5", "agreement": "agreement"}
_NUMBERS = {"kl": "KL", "relative_difference": "rel. difference"}


BUSY = 2.0
"""90th over 10th percentile of speedups on both sides of 1 from which on nothing was measured: on a
quiet machine it is about 1.1, on a shared one 1.5."""

IN_FLOAT = "in float32"
"""The net without int8, as `run` names it among the times."""

ASK = "--speedup 1.5"
"""What a run that asked for no time is told to ask for: little enough for most nets to reach."""


def quality_name(name: str) -> str:
    """``top1`` as ``top-1``; a user's own name as it is."""
    return _PERCENT.get(name) or _NUMBERS.get(name) or name


def step_name(step: str) -> str:
    """A step of `Report.quality` as shown to people."""
    return "original, tuned alike" if step == CONTROL else step


def is_percent(name: str) -> bool:
    """Whether a quality value is a percentage."""
    return name in _PERCENT


def quality_text(name: str, value: float | None) -> str:
    """A quality value with its unit; empty where there is none."""
    if value is None:
        return ""
    return f"{value:.2f} %" if is_percent(name) else f"{value:.4g}"


def own_names(report: Report) -> dict[str, bool]:
    """Qualities that are the user's own, and whether higher is better."""
    return report.settings.get("higher_is_better") or {}


def headline(values: Iterable[str], report: Report) -> str | None:
    """The one quality value to show where there is room for one: the user's own, if there is."""
    there = list(values)
    known = [name for name in (*own_names(report), "top1", "agreement") if name in there]
    return next(iter(known or there), None)


def own_words(report: Report, name: str) -> str:
    """What is to be known of a quality that is the user's own; empty where it is not."""
    higher = own_names(report).get(name)
    if higher is None:
        return ""
    of_batches = name == (report.settings.get("outputs") or {}).get("score")
    mean = ", mean of the batches" if of_batches else ""
    return f"your own{mean}, {'higher' if higher else 'lower'} is better"


def quality_of(report: Report) -> str:
    """What qualities were measured on, and which are the user's own."""
    own = [f"{quality_name(name)}: {own_words(report, name)}" for name in own_names(report)]
    return "; ".join([report.quality_of, *own])


def short(count: int) -> str:
    """A count to three digits: 37.7M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def ms(value: float) -> str:
    """Milliseconds to three digits, trailing zeros kept: 1.10."""
    return f"{value:.0f}" if value >= 999.5 else f"{value:#.3g}".rstrip(".")


def change(before: int, after: int) -> str:
    """Two counts, or one where nothing changed."""
    return short(before) if before == after else f"{short(before)}→{short(after)}"


def threads(speed: Speedup) -> str:
    """How many there were."""
    return f"{speed.threads} thread" + "s" * (speed.threads != 1)


def layer_unit(speed: Speedup | None) -> str:
    """What times of layers are in: on a target that computes in integers, theirs are so too."""
    return "ms in int8" if speed and speed.dtype == "int8" else "ms"


def int8_line(report: Report) -> str:
    """That the same chains in float32, or int8 without chains, are as fast; else empty."""
    one, others = report.measured, {other.net: other for other in report.speed}
    if one is None or one.dtype != "int8":
        return ""
    slower = {
        "int8 is not faster than the same chains in float32": others.get(IN_FLOAT),
        "the chains make it no faster than int8 alone": others.get(ALONE),
    }
    return "; ".join(
        f"{what} here: {one.speedup:.2f}x against {other.speedup:.2f}x"
        for what, other in slower.items()
        if other is not None and one.speedup <= other.speedup
    )


def setup(speed: Speedup, compiled: bool = False) -> str:
    """Where and how a time was measured; what goes without saying is left out."""
    if speed.taken_from:
        return f"{speed.device} ({speed.runtime}, {threads(speed)}, batch {speed.batch})"
    where = speed.runtime
    if speed.device != "cpu":
        where += f" ({speed.device})"
    words = [where] if speed.dtype == "float32" else [where, speed.dtype]
    if compiled:
        words.append("compiled")
    if speed.device == "cpu":
        words.append(threads(speed))
    return ", ".join([*words, f"batch {speed.batch}"])


def origin(speed: Speedup) -> str:
    """Where a time is from, if it was not measured in this run."""
    if not speed.taken_from:
        return ""
    if speed.runs:
        return f", measured there ({speed.taken_from})"
    return f", predicted from its times ({speed.taken_from}), not measured"


def measured_setup(report: Report) -> str:
    """Where the time that the verdict is about was measured."""
    search, speed = report.search, report.measured
    compiled = bool(search and search.measured and search.target.get("compiled"))
    return setup(speed, compiled) if speed else ""


def verdict(report: Report) -> tuple[str, bool] | None:
    """What came of it in one line, and whether that is a faster model; None: no time was measured.

    It is faster only where nine of ten pairs of runs were: where the 10th percentile of the
    paired speedups is above 1. Where they are far to both sides of 1 there is nothing to tell.
    """
    speed = report.measured
    if speed is None:
        return None
    where = measured_setup(report)
    spread = f"({speed.speedup_p10:.2f}..{speed.speedup_p90:.2f}){origin(speed)}"
    paid = quality_line(report)
    paid = f"; {paid}" if paid else ""
    measured = f"{speed.speedup:.2f}x on {where} {spread}"
    if speed.speedup_p10 < 1 < speed.speedup_p90 and speed.speedup_p90 > BUSY * speed.speedup_p10:
        told = f"NOT MEASURABLE: the machine was too busy: {measured}"
        return f"{told}; run again when it is quiet{paid}", False
    search = report.search
    swept = report.curve and not any(0 < (one.wanted or 1) < 1 for one in report.curve)  # speeds
    timed = search and (swept or {"speedup", "max_drop"} & search.budget.keys())
    advice = "" if timed else f"; fewer MACs are not always faster: ask for {ASK}"
    if speed.speedup <= 1:
        return f"NOT FASTER: {measured}{paid}{advice}", False
    if not speed.speedup_p10 > 1:
        return f"NO FASTER than the noise: {measured}{paid}{advice}", False
    return f"{speed.speedup:.2f}x faster on {where} {spread}{paid}", True


def forecast(search: SearchReport) -> str:
    """What a search predicts of the net that its plan makes, before anything is fitted."""
    asked = ", ".join(f"{name} {value:g}" for name, value in search.budget.items())
    reached = f"the budget is reached: {asked}" if asked else "the point of the sweep"
    speed = search.measured
    if speed is None or not search.predicted_ms:
        return f"predicted: {reached}; no time was measured"
    before, after = (search.predicted_ms[name] for name in ("original", "compressed"))
    if speed.taken_from:
        before, after = speed.original.median_ms, speed.compressed.median_ms
        return (
            f"predicted: {speed.speedup:.2f}x, {ms(before)} -> {ms(after)} ms on {setup(speed)}"
            f"{origin(speed)}; {reached}"
        )
    return (
        f"predicted: {before / after:.2f}x, {ms(before)} -> {ms(after)} ms on {setup(speed)}; the "
        f"net assembled of unfitted chains was measured {speed.speedup:.2f}x "
        f"({speed.speedup_p10:.2f}..{speed.speedup_p90:.2f}); {reached}"
    )


def quality_line(report: Report) -> str:
    """The headline quality of the last step and its change: ``top-1 91.02 % (-0.71)``."""
    if not report.quality:
        return ""
    after = report.quality_now
    name = headline(after, report)
    if name is None:
        return ""
    line = f"{quality_name(name)} {quality_text(name, after[name])}"
    moved = report.derived()["quality_change"].get(name)
    if moved is None or name == "agreement":  # with the original: its change says nothing new
        return line
    return f"{line} ({moved:+.2f})" if is_percent(name) else f"{line} ({moved:+.3g})"


def is_worse(report: Report, one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether a step's headline quality is worse than another's, as far as it is shown."""
    name = headline(one, report)
    if name is None or name not in other:
        return True
    lower = not own_names(report).get(name, name not in _NUMBERS and name != "loss")
    lost = (other[name] - one[name]) * (-1 if lower else 1)
    return lost > (0.005 if is_percent(name) else 5e-4 * abs(other[name]))


def has_lost(report: Report) -> bool:
    """Whether the result is worse than the original, by what is shown of it."""
    return is_worse(report, report.quality_now, report.quality.get("original", {}))


def was_interrupted(report: Report) -> bool:
    """Whether Ctrl-C or SIGTERM ended the run before its end."""
    tunings = (report.finetuning or {}, report.control or {})
    return CUT_SHORT in report.notes or any(one.get("interrupted") for one in tunings)


def slower_layers(report: Report) -> tuple[LayerReport, ...]:
    """Replaced layers whose chain is slower than the convolution beyond noise, the worst first.

    On the target, or on another one.
    """
    worse = [
        layer
        for layer in report.layers
        if layer.method and any(bound is not None and bound < 1 for bound in _highest(layer))
    ]
    return tuple(sorted(worse, key=slowdown, reverse=True))


def _highest(layer: LayerReport) -> list[float | None]:
    """Upper bounds of the speedup, on each target."""
    return [layer.speedup_high, *(one.get("speedup_high") for one in layer.elsewhere.values())]


def slowdown(layer: LayerReport) -> float:
    """Time of the chain over that of the convolution, on the target where that is most."""
    pairs = [(layer.ms, layer.ms_original)]
    pairs += [(one.get("ms"), one.get("ms_original")) for one in layer.elsewhere.values()]
    known = [now / before for now, before in pairs if now and before]
    return max(known, default=math.nan)


def likes_line(found: Mapping[str, Any]) -> str:
    """What a target was found to like: ``onnxruntime, ..: channels in steps of 16; ..``."""
    never = [
        f"{name} ({one['speedup']:.2f}x at best)"
        for name, one in found["methods"].items()
        if not one["faster"]
    ]
    rest = f"never faster: {', '.join(never)}" if never else "each method is faster in some layer"
    return f"{found['target']}: channels in steps of {found['step']}; {rest}"
