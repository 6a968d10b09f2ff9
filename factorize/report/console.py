"""The report for the person at the terminal."""

from __future__ import annotations

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from factorize.report.record import LayerReport, Report
from factorize.types import Plan

_PERCENT = {"top1": "top-1", "top5": "top-5", "agreement": "agreement"}
_NUMBERS = {"kl": "KL", "relative_difference": "rel. difference"}


def plan_table(plan: Plan) -> Table:
    """The plan as a table, a row per convolution, the error as predicted where that can be."""
    rows = [
        LayerReport(
            layer.spec.name, layer.spec.kind, layer.spec.weight_shape, layer.method, layer.rank,
            layer.variant, layer.spec.macs, layer.macs, layer.spec.params, layer.params,
            layer.error, None, layer.skip_reason, layer.notes,
        )
        for layer in plan.layers
    ]  # fmt: skip
    return _layer_table(tuple(rows))


def show(report: Report, console: Console) -> None:
    """Print the table of layers and the summary."""
    console.print(_layer_table(report.layers))
    console.print(_summary(report))


def _layer_table(layers: tuple[LayerReport, ...]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, show_footer=True)
    before, after = sum(r.macs_original for r in layers), sum(r.macs for r in layers)
    params_before, params_after = (
        sum(r.params_original for r in layers),
        sum(r.params for r in layers),
    )
    table.add_column("layer", "total", overflow="fold", min_width=14)
    table.add_column("shape", overflow="fold")
    table.add_column("method, rank", overflow="fold", min_width=13, max_width=44)
    table.add_column("MACs", _change(before, after), justify="right", no_wrap=True)
    table.add_column("params", _change(params_before, params_after), justify="right", no_wrap=True)
    held_out = any(layer.held_out_error is not None for layer in layers)
    title = "% error\nfit|held" if held_out else "error"  # held: on images not fitted to
    table.add_column(title, justify="right", no_wrap=True, min_width=9 if held_out else 6)
    for layer in layers:
        if layer.method:
            ranks = ",".join(map(str, layer.rank))
            what = Text(f"{layer.method} {ranks}")
            for note in layer.notes:
                what.append(f"\n{note}", style="yellow")
            style = ""
        else:
            what, style = Text(f"dense: {layer.skip_reason}"), "dim"
        error = "-" if layer.error is None else f"{layer.error:.4f}"
        if layer.held_out_error is not None:
            error = f"{100 * (layer.error or 0):.1f}|{100 * layer.held_out_error:.1f}"
        table.add_row(
            Text(layer.name or "(the model itself)"),
            "x".join(map(str, layer.weight_shape)),
            what,
            _change(layer.macs_original, layer.macs),
            _change(layer.params_original, layer.params),
            error if layer.method else "",
            style=style,
        )
    return table


def _summary(report: Report) -> Group:
    parts: list[Table | Text] = [Text()]
    sizes = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("", "original", "compressed", "ratio"):
        sizes.add_column(title, justify="left" if not title else "right")
    rows = {"MACs": report.macs, "parameters": report.params}
    rows |= {f"{kind} bytes": pair for kind, pair in report.bytes.items()}
    for name, pair in rows.items():
        if {"original", "compressed"} <= pair.keys():
            a, b = pair["original"], pair["compressed"]
            sizes.add_row(name, f"{a:,}", f"{b:,}", f"{b / a:.3f}" if a else "")
    parts.append(sizes)

    if report.quality:
        parts += [Text(), _quality_table(report)]
    if report.speed:
        speed = Table(box=None, header_style="bold", pad_edge=False)
        speed.add_column("latency, ms (p10..p90)")
        for title in ("original", "compressed", "speedup (p10..p90)"):
            speed.add_column(title, justify="right")
        for one in report.speed:
            a, b = one.original, one.compressed
            speed.add_row(
                f"{one.runtime}, {one.device}, {one.dtype}, batch {one.batch}, "
                f"{one.threads} threads, {one.runs} runs",
                f"{a.median_ms:.3f} ({a.p10_ms:.3f}..{a.p90_ms:.3f})",
                f"{b.median_ms:.3f} ({b.p10_ms:.3f}..{b.p90_ms:.3f})",
                f"{one.speedup:.2f}x ({one.speedup_p10:.2f}..{one.speedup_p90:.2f})",
            )
        parts += [Text(), speed]
    for note in report.notes:
        parts.append(Text(f"note: {note}", style="yellow"))
    for failure in report.failures:
        parts.append(Text(f"failed: {failure}", style="bold red"))
    return Group(*parts)


def _quality_table(report: Report) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
    table.add_column(Text(report.quality_of), overflow="fold", max_width=60)
    stages = list(report.quality)
    for stage in stages:
        table.add_column(stage, justify="right")
    names = list(dict.fromkeys(name for values in report.quality.values() for name in values))
    for name in names:
        cells = []
        for stage in stages:
            value = report.quality[stage].get(name)
            percent = name in _PERCENT
            cells.append("" if value is None else f"{value:.2f} %" if percent else f"{value:.4g}")
        table.add_row(Text(_PERCENT.get(name) or _NUMBERS.get(name) or name), *cells)
    return table


def _change(before: int, after: int) -> str:
    if before == after:
        return _short(before)
    return f"{_short(before)}→{_short(after)}"


def _short(count: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)
