"""Runs side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from factorize.report import words
from factorize.report.load import load_report
from factorize.report.record import Report

MACHINE = ("cpu", "cores", "cuda_device")


def compare_reports(paths: Sequence[str | Path]) -> Group:
    """A column per run, and below it what makes their numbers differ for other reasons.

    Parameters
    ----------
    paths
        Of ``report.json``, or of folders that have one.

    Raises
    ------
    DataError
        One of them cannot be read, see `load_report`.
    """
    files = [Path(path, "report.json") if Path(path).is_dir() else Path(path) for path in paths]
    reports = [load_report(file) for file in files]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for name in _names(files):
        table.add_column(Text(name), justify="right", overflow="fold")
    for title, cell in _ROWS.items():
        _add(table, title, [cell(report) for report in reports])
    last = [report.quality_now for report in reports]
    first = [report.quality.get("original", {}) for report in reports]
    for name in dict.fromkeys(name for values in last for name in values):
        _add(table, words.quality_name(name), [
            _quality(name, before.get(name), after.get(name))
            for before, after in zip(first, last, strict=True)
        ])  # fmt: skip
    warnings = [Text(line, style="yellow") for line in _differences(reports)]
    return Group(table, *([Text()] if warnings else []), *warnings)


def _names(files: Sequence[Path]) -> list[str]:
    """The folder that tells a run from the others."""
    short = [file.resolve().parent.name or str(file) for file in files]
    return [str(f) if short.count(s) > 1 else s for f, s in zip(files, short, strict=True)]


def _add(table: Table, title: str, cells: list[str]) -> None:
    if any(cells):
        table.add_row(Text(title), *map(Text, cells))


def _quality(name: str, before: float | None, after: float | None) -> str:
    if after is None or before is None:
        return words.quality_text(name, after)
    return f"{words.quality_text(name, before)} → {words.quality_text(name, after)}"


def _mix(report: Report) -> str:
    methods = Counter(layer.method or "dense" for layer in report.layers)
    return ", ".join(f"{count} {method}" for method, count in methods.most_common())


def _budget(report: Report) -> str:
    if report.search is None:
        return ""
    asked = ", ".join(f"{name} {value:g}" for name, value in report.search.budget.items())
    return asked if report.search.reached else f"{asked} (not reached)"


def _share(name: str) -> Callable[[Report], str]:
    def cell(report: Report) -> str:
        left = report.derived()["left"].get(name)
        return "" if left is None else f"{100 * left:.1f} %"

    return cell


def _speedup(report: Report) -> str:
    one = report.measured
    if one is None:
        return ""
    return f"{one.speedup:.2f}x ({one.speedup_p10:.2f}..{one.speedup_p90:.2f})"


def _times(report: Report) -> str:
    one = report.measured
    if one is None:
        return ""
    return f"{words.ms(one.original.median_ms)} → {words.ms(one.compressed.median_ms)}"


def _predicted(report: Report) -> str:
    if report.search is None:
        return ""
    return " → ".join(map(words.ms, report.search.predicted_ms.values()))


def _seconds(report: Report) -> str:
    return f"{sum(report.seconds.values()):.0f}"


_ROWS: dict[str, Callable[[Report], str]] = {
    "model": lambda report: report.model,
    "layers": _mix,
    "budget": _budget,
    "MACs left": _share("macs"),
    "parameters left": _share("params"),
    "target": words.measured_setup,
    "speedup (p10..p90)": _speedup,
    "measured, ms": _times,
    "predicted, ms": _predicted,
    "seconds": _seconds,
}


def _differences(reports: Sequence[Report]) -> list[str]:
    """One line for each reason why the columns must not be held against each other."""

    def varied(values: Sequence[object]) -> bool:
        return len({str(value) for value in values}) > 1

    lines = []
    machines = [[one.environment.get(key) for key in MACHINE] for one in reports]
    if varied(machines):
        shown = "; ".join(dict.fromkeys(", ".join(str(v) for v in m if v) for m in machines))
        lines.append(f"different machines, times are not comparable: {shown}")
    if varied([words.measured_setup(one) for one in reports if one.measured]):
        lines.append("different targets, times are not comparable")
    if varied([one.model for one in reports]):
        lines.append("different models: what each lost is comparable only with its own original")
    if varied([one.quality_of for one in reports]):
        shown = "; ".join(dict.fromkeys(one.quality_of for one in reports))
        lines.append(f"quality was measured on different things: {shown}")
    keys = dict.fromkeys(key for one in reports for key in one.environment if key not in MACHINE)
    for key in keys:
        values = [str(one.environment.get(key)) for one in reports]
        if varied(values):
            lines.append(f"different {key}: {', '.join(dict.fromkeys(values))}")
    return lines
