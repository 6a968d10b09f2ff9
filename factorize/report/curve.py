"""The accuracy-speedup curve: nets at several budgets, beside what else one could have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from factorize.report.record import Report

ALONE = "int8 alone"  # the step, and the net, of the original in integers; as `run` names it


@dataclass(frozen=True)
class CurvePoint:
    """One model on the accuracy-speedup curve.

    Attributes
    ----------
    kind
        ``dense``, ``search`` or ``uniform``: the same share of the maximal rank everywhere. On
        charts also ``int8``: the original in integers, and ``result``: where nothing was searched.
    wanted
        The speedup that was asked for.
    macs, params
        Share of the original's that is left.
    picked
        Whether it is the model that was exported.
    """

    label: str
    kind: str
    wanted: float | None
    speedup: float
    speedup_p10: float
    speedup_p90: float
    predicted_speedup: float | None
    macs: float
    params: float
    quality: dict[str, float]
    picked: bool


class Curve(tuple[CurvePoint, ...]):
    """The points, which a notebook shows as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        from factorize.report.notebook import curve_html

        return curve_html(self)


def points_of(report: Report) -> Curve:
    """What a chart shows: the curve, or without one the original and the result; int8 beside it."""
    points = list(report.curve)
    measured, before = report.measured, report.quality.get("original", {})
    if not points and measured and before:
        left = report.derived()["left"]
        points = [
            CurvePoint("original", "dense", None, 1.0, 1.0, 1.0, None, 1.0, 1.0, before, False),
            CurvePoint(
                "result", "result", None, measured.speedup, measured.speedup_p10,
                measured.speedup_p90, None, left.get("macs", 1.0), left.get("params", 1.0),
                report.quality_now, True,
            ),
        ]  # fmt: skip
    alone = next((one for one in report.speed if one.net == ALONE), None)
    if points and alone and (rated := report.quality.get(ALONE)):
        points.append(
            CurvePoint(ALONE, "int8", None, alone.speedup, alone.speedup_p10, alone.speedup_p90,
                       None, 1.0, 1.0, rated, False)
        )  # fmt: skip
    return Curve(points)
