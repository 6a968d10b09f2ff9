"""The charts of the page, as SVG text without fonts, scripts or outside references."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from factorize.report import words
from factorize.report.curve import CurvePoint, points_of
from factorize.report.drawing import PAGE, PAPER, TEXT, Palette, clipped, legend, new_figure, svg_of
from factorize.report.record import LayerReport, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDE, _NARROW = 860, 340  # in CSS pixels, shown at about that size
_KINDS = (
    ("dense", "D", "ink", "original"),
    ("int8", "P", "alone", "int8 alone"),
    ("uniform", "s", "after", "uniform rank"),
    ("search", "o", "before", "searched"),
    ("result", "o", "before", "result"),
)


def curve_chart(report: Report, *, wide: bool) -> str:
    """Quality against time, as SVG; empty where no two points have both."""
    figure = curve_figure(report, PAGE, wide=wide)
    return svg_of(figure, "curve" + "-wide" * wide, "Quality against time") if figure else ""


def layer_chart(report: Report, *, wide: bool) -> str:
    """Each layer before and after, as SVG; empty where there is nothing to show."""
    figure = layer_figure(report, PAGE, wide=wide)
    what = "Time" if _timed(report) else "MACs"
    title = f"{what} of each layer before and after"
    return svg_of(figure, "layers" + "-wide" * wide, title) if figure else ""


def curve_figure(report: Report, paint: Palette = PAPER, *, wide: bool = True) -> Figure | None:
    """Quality against time, with speedups above; None where no two points have both."""
    points = [one for one in points_of(report) if one.speedup > 0]
    name = _common(points, report)
    points = [one for one in points if name and math.isfinite(one.quality[name])]
    if name is None or len(points) < 2:
        return None
    width, height, left, top = (_WIDE, 430, 62, 66) if wide else (_NARROW, 360, 52, 86)
    figure, axes = new_figure(width, height, paint, left=left, right=20, top=top, bottom=48)
    # Without a measured time of the original, which old reports may lack, 1 stands for it.
    dense = report.measured.original.median_ms if report.measured else 1.0
    shown: list[Any] = []
    for kind, marker, colour, label in _KINDS:
        alike = sorted((p for p in points if p.kind == kind), key=lambda p: p.speedup)
        if not alike:
            continue
        x, y = [dense / p.speedup for p in alike], [p.quality[name] for p in alike]
        fast = [dense / (p.speedup_p90 or p.speedup) for p in alike]
        slow = [dense / (p.speedup_p10 or p.speedup) for p in alike]
        spread = [[max(0.0, now - end) for now, end in zip(x, fast, strict=True)],
                  [max(0.0, end - now) for now, end in zip(x, slow, strict=True)]]  # fmt: skip
        shown += [axes.errorbar(
            x, y, xerr=spread, fmt=marker, color=getattr(paint, colour), markersize=7,
            elinewidth=1.5, linestyle="-" if kind == "search" else "none", linewidth=1.5,
            label=label,
        )]  # fmt: skip
        if kind == "dense":
            axes.axhline(y[0], color=paint.muted, linewidth=1, linestyle=(0, (2, 3)))
        _name_points(axes, paint, alike if kind == "search" and wide else [], name, dense)
    if picked := [p for p in points if p.picked and p.kind != "result"]:
        shown += axes.plot(
            [dense / p.speedup for p in picked], [p.quality[name] for p in picked], "o",
            color=paint.ink, markersize=15, markerfacecolor="none", markeredgewidth=2,
            label="picked",
        )  # fmt: skip
    unit = ", %" if words.is_percent(name) else ""
    axes.set_ylabel(words.quality_name(name) + unit, parse_math=False)
    axes.set_xlabel("time of a batch, ms" if report.measured else "time, the original's is 1")
    axes.set_xlim(0, 1.08 * dense / min(1.0, *(p.speedup for p in points)))
    axes.grid(color=paint.grid, linewidth=1)
    axes.margins(y=0.12)
    axes.ticklabel_format(useOffset=False)
    _speedups_above(axes, paint, dense, max(p.speedup for p in points), 40 / width)
    legend(axes, paint, shown, columns=5 if wide else 2, above=38)
    return figure


def _common(points: Sequence[CurvePoint], report: Report) -> str | None:
    """The quality to show: one that every point has."""
    values = [set(one.quality) for one in points]
    first = points[0].quality if points else {}
    return words.headline((key for key in first if all(key in one for one in values)), report)


def _speedups_above(axes: Axes, paint: Palette, dense: float, most: float, least: float) -> None:
    """Speedups over the times; those closer to each other than a share of the axis are left out."""
    steps = [s for s in (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16) if s <= max(most, 1) * 1.05]
    low, high = axes.get_xlim()
    steps = [s for s in steps if low < dense / s <= high]
    apart, shown = least * (high - low), list[float]()
    for one in steps:
        if not shown or dense / shown[-1] - dense / one >= apart:
            shown.append(one)
    above = axes.secondary_xaxis("top")
    above.set_xticks([dense / s for s in shown], [f"{s:g}x" for s in shown])
    above.tick_params(labelcolor=paint.muted, labelsize=TEXT - 1, length=0, pad=4)
    above.patch.set_visible(False)
    above.spines["top"].set_visible(False)


def layer_figure(report: Report, paint: Palette = PAPER, *, wide: bool = True) -> Figure | None:
    """Two bars per layer, before and after, in execution order: time, or MACs where not timed."""
    timed = _timed(report)
    rows = [row for layer in report.layers if (row := _row(layer, timed))]
    if not rows:
        return None
    # A wide chart has the names beside the bars, a narrow one above them.
    pitch, width = (32, _WIDE) if wide else (46, _NARROW)
    longest = max(len(layer.label) for layer, *_ in rows)
    left = min(260, 20 + 8 * longest) if wide else 4
    height = pitch * len(rows) + 36
    figure, axes = new_figure(width, height, paint, left=left, right=130, top=30, bottom=6)
    middle = 0.0 if wide else 0.2
    high = 10 / pitch
    ends = max(max(before, after or 0) for _, before, after in rows) or 1
    for index, (layer, before, after) in enumerate(rows):
        y = index + middle
        if after is None:
            axes.barh(y, before, high, color=paint.before)
            text = f"{_amount(before, timed)} dense"
        else:
            axes.barh(y - high / 2, before, high, color=paint.before)
            axes.barh(y + high / 2, after, high, color=paint.after)
            text = f"{_amount(before, timed)} → {_amount(after, timed)}"
        axes.annotate(
            text, (max(before, after or 0), y), (6, 0), textcoords="offset points",
            va="center", color=paint.ink, fontsize=TEXT - 1,
        )  # fmt: skip
        if not wide:
            axes.annotate(
                clipped(layer.label, 38), (0, y - 1.9 * high), (5, 0), va="center", color=paint.ink,
                textcoords="offset points", fontsize=TEXT - 1, parse_math=False,
            )  # fmt: skip
    axes.set_xlim(0, ends)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    names = [clipped(layer.label, 30) if wide else "" for layer, *_ in rows]
    axes.set_yticks(range(len(rows)), names, parse_math=False)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    unit = words.layer_unit(report.measured) if timed else "MACs"
    bars = [
        axes.barh([0], [0], color=colour, label=f"{when}, {unit}")
        for colour, when in ((paint.before, "before"), (paint.after, "after"))
    ]
    legend(axes, paint, bars, columns=2)
    return figure


def _timed(report: Report) -> bool:
    return any(layer.ms_original is not None for layer in report.layers)


def _row(layer: LayerReport, timed: bool) -> tuple[LayerReport, float, float | None] | None:
    """The layer's two values; the second is None where it stayed dense."""
    before = layer.ms_original if timed else float(layer.macs_original)
    after = layer.ms if timed else float(layer.macs)
    if before is None or (layer.method and after is None):
        return None
    return layer, before, after if layer.method else None


def _amount(value: float, timed: bool) -> str:
    return words.ms(value) if timed else words.short(int(value))


def _name_points(
    axes: Axes, paint: Palette, points: Sequence[CurvePoint], name: str, dense: float
) -> None:
    for index, point in enumerate(points[:8]):  # more would lie on each other; the table has all
        axes.annotate(
            clipped(point.label, 20), (dense / point.speedup, point.quality[name]),
            (8, (-16, 8)[index % 2]),
            textcoords="offset points", color=paint.muted, fontsize=TEXT - 1, parse_math=False,
        )  # fmt: skip
