"""What it cost and what it won: the record, and how it is shown."""

from factorize.report.compare import compare_reports
from factorize.report.console import plan_table, show, shown
from factorize.report.curve import Curve, CurvePoint
from factorize.report.html import write_html
from factorize.report.load import load_report
from factorize.report.next_steps import REAL
from factorize.report.progress import Bars
from factorize.report.record import (
    CONTROL,
    CUT_SHORT,
    LayerReport,
    Report,
    SearchReport,
    layer_reports,
)
from factorize.report.terminal import Console, log_to
from factorize.report.words import forecast, verdict

__all__ = [
    "CONTROL",
    "CUT_SHORT",
    "REAL",
    "Bars",
    "Console",
    "Curve",
    "CurvePoint",
    "LayerReport",
    "Report",
    "SearchReport",
    "compare_reports",
    "forecast",
    "layer_reports",
    "load_report",
    "log_to",
    "plan_table",
    "show",
    "shown",
    "verdict",
    "write_html",
]
