"""What the charts have in common: colours, a figure without pyplot, and SVG for a page."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXT = 13  # pixels


@dataclass(frozen=True)
class Palette:
    """Colours by what they mean."""

    ink: str
    muted: str
    grid: str
    before: str
    after: str
    alone: str


PAGE = Palette("#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f", "#101112")
"""Colours that nothing else has, which then become the page's variables: so the charts follow
light and dark."""

PAPER = Palette("#1b1f24", "#5b6470", "#dfe3e8", "#1769b5", "#c05a00", "#14703c")
_VARIABLES = ("--ink", "--muted", "--line", "--before", "--after", "--good")


def new_figure(
    width: int, height: int, paint: Palette, *, left: int, right: int, top: int, bottom: int
) -> tuple[Figure, Axes]:
    """A figure of its own, beside pyplot's global ones; all sizes in pixels."""
    from matplotlib.figure import Figure

    figure = Figure((width / 72, height / 72), dpi=72)
    figure.patch.set_visible(paint is PAPER)
    axes = figure.add_axes(
        (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    )
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(paint.muted)
    axes.tick_params(color=paint.muted, labelcolor=paint.ink, labelsize=TEXT - 1, length=0, pad=6)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=paint.ink, fontsize=TEXT)
    return figure, axes


def legend(axes: Axes, paint: Palette, handles: list[Any], columns: int, above: float = 0) -> None:
    """Over the axes, some pixels above them."""
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1 + above / axes.bbox.height),
        ncols=columns, frameon=False, fontsize=TEXT - 1, labelcolor=paint.ink, borderaxespad=0.3,
        columnspacing=1.2, handletextpad=0.4, borderpad=0.2, handlelength=1.2,
    )  # fmt: skip


def svg_of(figure: Figure, name: str, title: str) -> str:
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
    for colour, variable in zip(astuple(PAGE), _VARIABLES, strict=True):
        body = body.replace(colour, f"var({variable})")
    return (
        f'<svg class="{"wide" if name.endswith("wide") else "narrow"}" role="img" '
        f'aria-label="{escape(title)}" {box.group() if box else ""}>'
        f"<title>{escape(title)}</title>{body}"
    )


def clipped(text: str, length: int) -> str:
    """Both ends of a long name."""
    keep = length // 2
    return text if len(text) <= length else f"{text[:keep]}…{text[-keep:]}"
