"""The report for the person at the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from factorize.report import terminal, words
from factorize.report.record import LayerReport, Report, layer_reports
from factorize.types import Plan, Speedup

NARROW = 100  # columns; below, the table of layers leaves out what can be spared
SLOWER = 6  # layers named


def plan_table(
    plan: Plan,
    times: Mapping[str, Mapping[str, float]] = {},
    speed: Speedup | None = None,
    *,
    error_of: str = "weights",
) -> Table:
    """The plan as a table, a row per convolution, the error as predicted where that can be.

    Parameters
    ----------
    times
        Of layers, as in `layer_reports`.
    speed
        Of the net, on the same target.
    error_of
        What the errors are of, for their heading.
    """
    unit = words.layer_unit(speed)
    return _layer_table(layer_reports(plan, times=times), unit, errors=f"% error\nof {error_of}")


def show(report: Report, console: Console) -> None:
    """Print the verdict, the table of layers and the summary."""
    if found := words.verdict(report):
        line, faster = found
        console.print(Text(line, style="bold green" if faster else "bold red"), soft_wrap=True)
        console.print()
    unit = words.layer_unit(report.measured)
    console.print(_layer_table(report.layers, unit, narrow=console.width < NARROW))
    for line in _remarks(report):
        console.print(line)
    console.print(_summary(report))


def shown(report: Report, width: int = 100) -> str:
    """What `show` prints, as text."""
    console = terminal.Console(file=io.StringIO(), width=width)
    show(report, console)
    return "\n".join(map(str.rstrip, console.file.getvalue().splitlines()))  # type: ignore[attr-defined]


def _layer_table(
    layers: tuple[LayerReport, ...], unit: str, narrow: bool = False, errors: str = "% error"
) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, show_footer=True)
    timed = any(layer.ms_original is not None for layer in layers)
    spare = timed and narrow
    table.add_column("layer", "sum of layers", overflow="fold", min_width=12 if spare else 14)
    if not spare:
        table.add_column("shape", overflow="fold")
    table.add_column("method, rank", overflow="fold", min_width=13, max_width=44)
    if timed:
        # No sum: not all are timed, and each is by itself. The net's own time is told below.
        table.add_column(unit.replace(" ", "\n", 1), justify="right", no_wrap=True)
    others = list(dict.fromkeys(name for layer in layers for name in layer.elsewhere))
    for name in others:
        table.add_column(Text(f"ms, {name}"), justify="right", max_width=16)
    columns = [("MACs", "macs_original", "macs"), ("params", "params_original", "params")]
    for title, before, after in columns[:1] if spare else columns:
        sums = (sum(getattr(layer, key) for layer in layers) for key in (before, after))
        table.add_column(title, words.change(*sums), justify="right", no_wrap=True)
    held_out = any(layer.held_out_error is not None for layer in layers)
    title = "% error\nfit|held" if held_out else errors  # held: on images not fitted to
    table.add_column(title, justify="right", no_wrap=True, min_width=9 if held_out else 6)
    for layer in layers:
        if layer.method:
            what = Text(f"{layer.method} {','.join(map(str, layer.rank))}")
            for note in layer.notes:
                what.append(f"\n{note}", style="yellow")
        else:
            what = Text(f"dense: {layer.skip_reason}")
        cells = [Text(layer.label)]
        cells += [] if spare else [Text("x".join(map(str, layer.weight_shape)))]
        cells += [what]
        cells += [Text(_times(layer.ms_original, layer.ms_now))] if timed else []
        for name in others:
            one = layer.elsewhere.get(name, {})
            before, after = one.get("ms_original"), one.get("ms")
            cells += [Text(_times(before, after if layer.method else before))]
        cells += [Text(words.change(layer.macs_original, layer.macs))]
        cells += [] if spare else [Text(words.change(layer.params_original, layer.params))]
        table.add_row(*cells, _error(layer), style="" if layer.method else "dim")
    return table


def _error(layer: LayerReport) -> str:
    if not layer.method:
        return ""
    if layer.held_out_error is not None:
        return f"{100 * (layer.error or 0):.1f}|{100 * layer.held_out_error:.1f}"
    return "-" if layer.error is None else f"{100 * layer.error:.1f}"


def _times(before: float | None, after: float | None) -> str:
    if before is None:
        return "not timed"
    if after is None:
        return words.ms(before)
    return words.ms(before) if before == after else f"{words.ms(before)}→{words.ms(after)}"


def _remarks(report: Report) -> Iterator[Text]:
    """One line each: layers that became slower, prediction against measurement, the budget."""
    if worse := words.slower_layers(report):
        named = ", ".join(f"{one.label} {words.slowdown(one):.2f}x" for one in worse[:SLOWER])
        more = f" and {len(worse) - SLOWER} more" if len(worse) > SLOWER else ""
        yield Text(f"slower than dense: {named}{more}", style="yellow")
    if told := words.int8_line(report):
        yield Text(told, style="yellow")
    search = report.search
    if search is None:
        return
    # Of the original nothing is predicted: predictions are relative to its measured time.
    error = report.derived()["prediction_error"].get("compressed")
    if search.measured and search.measured.runs and error is not None:
        predicted, measured = search.predicted_ms["compressed"], search.measured.compressed
        yield Text(
            f"ms predicted/measured: {words.ms(predicted)}/{words.ms(measured.median_ms)} "
            f"({100 * error:+.1f} %)"
        )
    for found in search.likes:
        yield Text(words.likes_line(found))
    if not search.reached:
        asked = ", ".join(f"{name} {value:g}" for name, value in search.budget.items())
        yield Text(f"the budget was not reached: {asked}", style="bold red")


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
    if report.onnx and (sizes_taken := report.onnx.get("input_sizes")):
        parts.append(Text(f"model.onnx takes {sizes_taken}"))

    if report.quality:
        parts += [Text(), _quality_table(report)]
    if report.speed:
        speed = Table(box=None, header_style="bold", pad_edge=False)
        speed.add_column("latency, ms (p10..p90)")
        for title in ("original", "compressed", "speedup (p10..p90)"):
            speed.add_column(title, justify="right")
        for one in report.speed:
            a, b = one.original, one.compressed
            runs = f"{one.runs} runs{words.origin(one)}" if one.runs else words.origin(one)[2:]
            speed.add_row(
                f"{one.runtime}, {one.device}, {one.dtype}, batch {one.batch}, "
                f"{words.threads(one)}, {runs}{one.net and f': {one.net}'}",
                f"{a.median_ms:.3f} ({a.p10_ms:.3f}..{a.p90_ms:.3f})",
                f"{b.median_ms:.3f} ({b.p10_ms:.3f}..{b.p90_ms:.3f})",
                f"{one.speedup:.2f}x ({one.speedup_p10:.2f}..{one.speedup_p90:.2f})",
            )
        parts += [Text(), speed]
    if report.curve:
        parts += [Text(), _curve_table(report)]
    for note in report.notes:
        parts.append(Text(f"note: {note}", style="yellow"))
    for failure in report.failures:
        parts.append(Text(f"failed: {failure}", style="bold red"))
    return Group(*parts)


def _quality_table(report: Report) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
    table.add_column(Text(words.quality_of(report)), overflow="fold", max_width=60)
    steps = list(report.quality)
    for step in steps:
        table.add_column(words.step_name(step), justify="right")
    names = list(dict.fromkeys(name for values in report.quality.values() for name in values))
    for name in names:
        cells = [words.quality_text(name, report.quality[step].get(name)) for step in steps]
        table.add_row(Text(words.quality_name(name)), *cells)
    return table


def _curve_table(report: Report) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("curve", overflow="fold")
    for title in ("speedup (p10..p90)", "MACs left"):
        table.add_column(title, justify="right", no_wrap=True)
    names = list(dict.fromkeys(name for point in report.curve for name in point.quality))
    for name in names:
        table.add_column(Text(words.quality_name(name)), justify="right")
    for point in report.curve:
        table.add_row(
            Text(f"{point.label}{' *' * point.picked}"),
            f"{point.speedup:.2f}x ({point.speedup_p10:.2f}..{point.speedup_p90:.2f})",
            f"{100 * point.macs:.1f} %",
            *(words.quality_text(name, point.quality.get(name)) for name in names),
            style="bold" if point.picked else "",
        )
    if any(point.picked for point in report.curve):
        table.caption, table.caption_justify = "* picked", "left"
    return table
