"""How a notebook shows plans and reports, and figures and tables for it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import count
from typing import TYPE_CHECKING, Any

from factorize.errors import DataError
from factorize.report import words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from factorize.report.curve import CurvePoint
    from factorize.report.record import Report

_numbers = count()  # of charts: their ids must differ within a notebook


def table_html(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table; the notebook has its own style for it."""
    head = "".join(f"<th>{escape(one)}</th>" for one in titles)
    body = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def curve_html(points: Sequence[CurvePoint]) -> str:
    """The points as a table, the picked one marked."""
    names = list(dict.fromkeys(name for point in points for name in point.quality))
    titles = ("point", "speedup (p10..p90)", "MACs left", *map(words.quality_name, names))
    return table_html(titles, [
        (f"{one.label}{' (picked)' * one.picked}",
         f"{one.speedup:.2f}x ({one.speedup_p10:.2f}..{one.speedup_p90:.2f})",
         f"{100 * one.macs:.1f} %",
         *(words.quality_text(name, one.quality.get(name)) for name in names))
        for one in points
    ])  # fmt: skip


def report_html(report: Report) -> str:
    """The verdict, the chart and the layers."""
    from factorize.report.charts import curve_figure
    from factorize.report.drawing import svg_of

    told = words.verdict(report)
    parts = [f"<p><b>{escape(told[0] if told else 'No time was measured.')}</b></p>"]
    if (figure := curve_figure(report)) is not None:
        chart = svg_of(figure, f"chart{next(_numbers)}", "Quality against time")
        parts.append(f'<div style="max-width: 50rem">{chart}</div>')
    rows = [
        (one.label,
         f"{one.method} {', '.join(map(str, one.rank))}" if one.method
         else f"dense: {one.skip_reason}",
         words.change(one.macs_original, one.macs),
         words.change(one.params_original, one.params),
         "" if one.error is None else f"{100 * one.error:.1f} %")
        for one in report.layers
    ]  # fmt: skip
    parts.append(table_html(("layer", "method, rank", "MACs", "params", "error"), rows))
    return "".join(parts)


def figure_of(report: Report, what: str) -> Figure:
    """A chart of the report as a figure of matplotlib, which is nobody else's.

    Raises
    ------
    DataError
        There is no such chart, or nothing to show on it.
    """
    from factorize.report.charts import curve_figure, layer_figure

    makers = {"curve": curve_figure, "layers": layer_figure}
    if what not in makers:
        raise DataError(f"figure: must be curve or layers, got {what!r}. Correct the name.")
    figure = makers[what](report)
    if figure is None:
        raise DataError(f"figure: {what} has nothing to show: no time was measured.")
    return figure


def frame_of(report: Report, what: str) -> Any:
    """A table of the report as a ``pandas.DataFrame``.

    Raises
    ------
    DataError
        There is no such table, or pandas is not installed.
    """
    tables = {"layers": report.layers, "curve": report.curve}
    if what not in tables:
        raise DataError(f"to_frame: must be layers or curve, got {what!r}. Correct the name.")
    try:
        import pandas
    except ImportError:
        raise DataError(
            "to_frame: needs the package pandas, which is not installed. Run pip install pandas."
        ) from None
    rows = [dict(vars(one)) for one in tables[what]]
    if what == "curve":
        rows = [{**row, **row.pop("quality")} for row in rows]
    return pandas.DataFrame(rows)
