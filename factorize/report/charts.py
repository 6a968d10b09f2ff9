"""The charts of the page, as SVG text without fonts, scripts or outside references."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from factorize.report import words
from factorize.report.record import CurvePoint, LayerReport, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Drawn in colours that nothing else has, which then become the page's variables: so the charts
# follow light and dark.
_INK, _MUTED, _GRID, _BEFORE, _AFTER = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
_VARIABLES = {
    _INK: "var(--ink)", _MUTED: "var(--muted)", _GRID: "var(--line)",
    _BEFORE: "var(--before)", _AFTER: "var(--after)",
}  # fmt: skip
_WIDE, _NARROW = 860, 340  # in CSS pixels, shown at about that size
_TEXT = 13


def curve_chart(report: Report, *, wide: bool) -> str:
    """Quality against measured speedup, as SVG; empty where no points have both."""
    values = [set(point.quality) for point in report.curve]
    name = words.headline({key: 0.0 for key in report.curve[0].quality if
                           all(key in one for one in values)}) if values else None  # fmt: skip
    if name is None:
        return ""
    width, height = (_WIDE, 420) if wide else (_NARROW, 330)
    left, top = (62, 26) if wide else (52, 48)
    figure, axes = _figure(width, height, left=left, right=20, top=top, bottom=48)
    for kind, marker, colour, label in (
        ("dense", "D", _INK, "dense"),
        ("uniform", "s", _AFTER, "uniform rank"),
        ("search", "o", _BEFORE, "searched"),
    ):
        points = sorted((p for p in report.curve if p.kind == kind), key=lambda p: p.speedup)
        points = [p for p in points if math.isfinite(p.quality[name])]
        if not points:
            continue
        x, y = [p.speedup for p in points], [p.quality[name] for p in points]
        spread = [[max(0.0, p.speedup - p.speedup_p10) for p in points],
                  [max(0.0, p.speedup_p90 - p.speedup) for p in points]]  # fmt: skip
        axes.errorbar(
            x, y, xerr=spread, fmt=marker, color=colour, markersize=7, elinewidth=1.5,
            linestyle="-" if kind == "search" else "none", linewidth=1.5, label=label,
        )  # fmt: skip
        if kind == "dense":
            axes.axhline(y[0], color=_MUTED, linewidth=1, linestyle=(0, (2, 3)))
        _name_points(axes, points if kind == "search" and wide else [], name)
    if picked := [p for p in report.curve if p.picked]:
        axes.plot(
            [p.speedup for p in picked], [p.quality[name] for p in picked], "o", color=_INK,
            markersize=15, markerfacecolor="none", markeredgewidth=2, label="picked",
        )  # fmt: skip
    unit = ", %" if words.is_percent(name) else ""
    axes.set_ylabel(words.quality_name(name) + unit, parse_math=False)
    axes.set_xlabel("measured speedup, times")
    axes.grid(color=_GRID, linewidth=1)
    axes.margins(0.1)
    axes.ticklabel_format(useOffset=False)
    _legend(axes, columns=4 if wide else 2)
    return _svg(figure, "curve" + "-wide" * wide, "Quality against measured speedup")


def layer_chart(report: Report, *, wide: bool) -> str:
    """Two bars per layer, before and after, in execution order: time, or MACs where not timed."""
    timed = any(layer.ms_original is not None for layer in report.layers)
    rows = [row for layer in report.layers if (row := _row(layer, timed))]
    if not rows:
        return ""
    # A wide chart has the names beside the bars, a narrow one above them.
    pitch, width = (32, _WIDE) if wide else (46, _NARROW)
    longest = max(len(layer.label) for layer, *_ in rows)
    left = min(260, 20 + 8 * longest) if wide else 4
    height = pitch * len(rows) + 36
    figure, axes = _figure(width, height, left=left, right=130, top=30, bottom=6)
    middle = 0.0 if wide else 0.2
    high = 10 / pitch
    ends = max(max(before, after or 0) for _, before, after in rows) or 1
    for index, (layer, before, after) in enumerate(rows):
        y = index + middle
        if after is None:
            axes.barh(y, before, high, color=_BEFORE)
            text = f"{_amount(before, timed)} dense"
        else:
            axes.barh(y - high / 2, before, high, color=_BEFORE)
            axes.barh(y + high / 2, after, high, color=_AFTER)
            text = f"{_amount(before, timed)} → {_amount(after, timed)}"
        axes.annotate(
            text, (max(before, after or 0), y), (6, 0), textcoords="offset points",
            va="center", color=_INK, fontsize=_TEXT - 1,
        )  # fmt: skip
        if not wide:
            axes.annotate(
                _clipped(layer.label, 38), (0, y - 1.9 * high), (5, 0), va="center", color=_INK,
                textcoords="offset points", fontsize=_TEXT - 1, parse_math=False,
            )  # fmt: skip
    axes.set_xlim(0, ends)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    names = [_clipped(layer.label, 30) if wide else "" for layer, *_ in rows]
    axes.set_yticks(range(len(rows)), names, parse_math=False)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    unit = "ms" if timed else "MACs"
    axes.barh([0], [0], color=_BEFORE, label=f"before, {unit}")
    axes.barh([0], [0], color=_AFTER, label=f"after, {unit}")
    _legend(axes, columns=2)
    what = "Time" if timed else "MACs"
    return _svg(figure, "layers" + "-wide" * wide, f"{what} of each layer before and after")


def _row(layer: LayerReport, timed: bool) -> tuple[LayerReport, float, float | None] | None:
    """The layer's two values; the second is None where it stayed dense."""
    before = layer.ms_original if timed else float(layer.macs_original)
    after = layer.ms if timed else float(layer.macs)
    if before is None or (layer.method and after is None):
        return None
    return layer, before, after if layer.method else None


def _amount(value: float, timed: bool) -> str:
    return words.ms(value) if timed else words.short(int(value))


def _clipped(text: str, length: int) -> str:
    """Both ends of a long name."""
    keep = length // 2
    return text if len(text) <= length else f"{text[:keep]}…{text[-keep:]}"


def _name_points(axes: Axes, points: Sequence[CurvePoint], name: str) -> None:
    for point in points[:8]:  # more would lie on each other; the table has them all
        axes.annotate(
            _clipped(point.label, 20), (point.speedup, point.quality[name]), (8, 8),
            textcoords="offset points", color=_MUTED, fontsize=_TEXT - 1, parse_math=False,
        )  # fmt: skip


def _figure(
    width: int, height: int, *, left: int, right: int, top: int, bottom: int
) -> tuple[Figure, Axes]:
    """A figure of its own, beside pyplot's global ones; all sizes in pixels."""
    from matplotlib.figure import Figure

    figure = Figure((width / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    axes = figure.add_axes(
        (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    )
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_MUTED)
    axes.tick_params(color=_MUTED, labelcolor=_INK, labelsize=_TEXT - 1, length=0, pad=6)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=_INK, fontsize=_TEXT)
    return figure, axes


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, fontsize=_TEXT - 1,
        labelcolor=_INK, borderaxespad=0.3, columnspacing=1.2, handletextpad=0.4, borderpad=0.2,
        handlelength=1.2,
    )  # fmt: skip


def _svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an element for an HTML page: text as text, ids of its own."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    written = io.StringIO()
    unknown = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}),
        warnings.catch_warnings(),
    ):
        # It misses glyphs in its own font; the reader's browser draws the text.
        warnings.filterwarnings("ignore", "Glyph")
        FigureCanvasSVG(figure).print_svg(written, metadata=unknown)
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', svg)
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index(">") + 1 :], flags=re.DOTALL)
    # The page's font, by either way that versions of matplotlib write their own.
    body = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r'(\sid="|href="#|url\(#)', rf"\1{name}-", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    return (
        f'<svg class="{"wide" if name.endswith("wide") else "narrow"}" role="img" '
        f'aria-label="{escape(title)}" {box.group() if box else ""}>'
        f"<title>{escape(title)}</title>{body}"
    )
