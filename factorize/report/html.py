"""The report as one page that needs nothing else: no network, and no script to be read."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factorize.report import words
from factorize.report.charts import curve_chart, layer_chart
from factorize.report.glossary import terms
from factorize.report.loading import snippets
from factorize.report.next_step import NextStep
from factorize.report.next_steps import next_steps
from factorize.report.record import Report
from factorize.system.whole_file import write_whole

if TYPE_CHECKING:
    from markupsafe import Markup


def write_html(
    report: Report,
    path: str | Path,
    command: str | None = None,
    out: str | Path | None = None,
) -> None:
    """Write the page. Each number on it is in ``report.json``, and in a ``<data value>`` here.

    Parameters
    ----------
    command
        The command line that made the report; other text is shown and not made use of.
    out
        The folder that it wrote to.

    Raises
    ------
    OutputError
        The file cannot be written; what was there before stays.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    jinja = Environment(
        loader=PackageLoader("factorize.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    jinja.filters |= {
        "number": _number, "quality": _quality, "count": _count, "percent": _percent,
        "ms": _ms, "plain": _plain, "flat": lambda values: list(_flat(values)),
        "quality_name": words.quality_name, "step_name": words.step_name, "setup": words.setup,
        "likes_line": words.likes_line,
        "shell_words": lambda command: map(shlex.quote, shlex.split(command)),
        "origin": words.origin, "own_words": partial(words.own_words, report),
    }  # fmt: skip
    names = dict.fromkeys(n for values in report.quality.values() for n in values)
    curve_names = dict.fromkeys(n for point in report.curve for n in point.quality)
    after = report.quality_now
    page = jinja.get_template("report.html.j2").render(
        report=report,
        derived=report.derived(),
        measured=report.measured,
        where=words.measured_setup(report),
        verdict=words.verdict(report),
        slower=words.slower_layers(report),
        unit=words.layer_unit(report.measured),
        int8_line=words.int8_line(report),
        interrupted=words.was_interrupted(report),
        timed=any(layer.ms_original is not None for layer in report.layers),
        names=list(names),
        curve_names=list(curve_names),
        after=after,
        headline=words.headline(after, report),
        quality_of=words.quality_of(report),
        # Charts are drawn by us, and matplotlib escapes the text in them.
        curve_charts=[Markup(curve_chart(report, wide=wide)) for wide in (True, False)],
        layer_charts=[Markup(layer_chart(report, wide=wide)) for wide in (True, False)],
        command=command,
        is_line=_is_line(command),
        steps=_to_do(report, command, out),
        snippets=snippets(report),
        glossary=terms(),
        folded=list(_folded(report)),
    )
    write_whole(path, page + "\n")


def _to_do(
    report: Report, command: str | None, out: str | Path | None
) -> list[tuple[NextStep, str]]:
    """What to do next, and how: commands, if there was one."""
    steps = next_steps(report)
    if command is None or not _is_line(command):
        return [(one, one.call) for one in steps]
    return [(one, one.command(command, out)) for one in steps if one.fits(command)]


def _is_line(command: str | None) -> bool:
    """Whether a shell could read it."""
    try:
        return bool(command and shlex.split(command))
    except ValueError:
        return False


def _folded(report: Report) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """What few readers want to see: tables of names and values, as far as there are any."""
    for caption, values in (
        ("Settings", report.settings), ("Environment", report.environment),
        ("Recalibration", report.recalibration), ("Fine-tuning", report.finetuning),
        ("Tuning of the original", report.control), ("ONNX file", report.onnx),
        ("In integers", (report.int8 or {}).get("check")),
        ("Wall time, seconds", report.seconds),
    ):  # fmt: skip
        if values:
            yield caption, list(_flat(values))


def _data(value: float, text: str) -> Markup:
    from markupsafe import Markup

    return Markup('<data value="{}">{}</data>').format(repr(value), text)


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _number(value: float | None, form: str = ".3g", unit: str = "") -> Markup | str:
    """A number as a format says."""
    return _data(value, f"{value:{form}}{unit}") if value is not None and _known(value) else "–"


def _ms(value: float | None) -> Markup | str:
    return _data(value, words.ms(value)) if value is not None and _known(value) else "–"


def _percent(value: float | None, form: str = ".1f") -> Markup | str:
    """A share as a percentage."""
    return _data(value, f"{100 * value:{form}} %") if value is not None and _known(value) else "–"


def _quality(value: float | None, name: str) -> Markup | str:
    if value is None or not _known(value):
        return "–"
    return _data(value, words.quality_text(name, value))


def _count(value: int) -> Markup:
    return _data(value, words.short(value))


def _plain(value: Any) -> Markup | str:
    """A value of which only the run knows what it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _number(value, ".4g")
    if isinstance(value, int):
        return _data(value, str(value))
    if value is None or value in ("", [], ()):
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
