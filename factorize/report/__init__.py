"""What it cost and what it won: the record, and how it is shown."""

from factorize.report.console import plan_table, show
from factorize.report.progress import Bars
from factorize.report.record import LayerReport, Report, layer_reports

__all__ = ["Bars", "LayerReport", "Report", "layer_reports", "plan_table", "show"]
