"""The tables in README.md, from results.json and likes.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CLOSE = 0.1  # shares of MACs within this of the one asked for are shown


def write_tables(folder: Path) -> None:
    """Replace what is between the marks in README.md."""
    readme = folder / "README.md"
    text = readme.read_text()
    for name, made in (("results", results_table), ("likes", likes_table)):
        file = folder / f"{name}.json"
        if file.exists():
            before, _, rest = text.partition(f"<!-- {name} -->\n")
            _, _, after = rest.partition(f"<!-- end of {name} -->\n")
            table = "\n".join(made(json.loads(file.read_text())))
            text = f"{before}<!-- {name} -->\n{table}\n<!-- end of {name} -->\n{after}"
    readme.write_text(text)


def results_table(rows: list[dict[str, Any]]) -> list[str]:
    """One row for each command."""
    lines = [
        "| net | searched for | measured on | speedup (p10..p90) | dense ms | predicted | slower "
        "layers (least) | layers | quality | s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda one: (one["net"], str(one["searched_for"]))):
        wished = " and ".join(row["searched_for"])
        if "speed" not in row:
            lines.append(f"| {row['net']} | {wished} | {row['measured_on'] or ''} | "
                         f"{' '.join(row['message'].split())[-160:]} | | | | | | |")  # fmt: skip
            continue
        methods = ", ".join(f"{name} {count}" for name, count in row["layers"].items())
        for number, (name, (middle, low, high, ms)) in enumerate(row["speed"].items()):
            error = row["prediction_error"] if number == 0 else None
            least = row["least_layer_speedup"].get(name)
            cells = [
                row["net"], wished, name, f"{middle:.2f}x ({low:.2f}..{high:.2f})", f"{ms:.1f}",
                "" if error is None else f"{100 * error:+.1f} %",
                f"{row['slower_layers'].get(name, '')}" + (f" ({least:.2f}x)" if least else ""),
                methods if number == 0 else "", _quality(row["quality"]) if number == 0 else "",
                f"{row['seconds']:.0f}" if number == 0 else "",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _quality(steps: dict[str, dict[str, float]]) -> str:
    before, after = steps.get("original", {}), [*steps.values()][-1]
    return ", ".join(
        f"{name} {before.get(name, float('nan')):.2f} -> {after[name]:.2f}"
        for name in ("psnr", "top1")
        if name in after
    )


def likes_table(rows: list[dict[str, Any]]) -> list[str]:
    """A table for each target: methods by layer, and its step."""
    lines = []
    for row in rows:
        layers = list(dict.fromkeys((one["channels"], one["size"]) for one in row["chains"]))
        shares = list(dict.fromkeys(one["share"] for one in row["chains"]))
        never = [
            name
            for name in dict.fromkeys(one["method"] for one in row["chains"])
            if all(one["speedup"][1] <= 1 for one in row["chains"] if one["method"] == name)
        ]
        lines += [
            f"**{row['target']}, {row['dtype']}**, on {row['context']['device']}: channels in "
            f"steps of {row['step']}; never faster here: {', '.join(never) or 'none'}.",
            "",
            "| method | " + " | ".join(f"{c} at {s}x{s}" for c, s in layers) + " |",
            "|---|" + "---|" * len(layers),
        ]
        for name in dict.fromkeys(one["method"] for one in row["chains"]):
            cells = []
            for layer in layers:
                known = {
                    one["share"]: one
                    for one in row["chains"]
                    if (one["channels"], one["size"]) == layer and one["method"] == name
                }
                cells.append(" / ".join(_gain(known.get(share)) for share in shares))
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def _gain(found: dict[str, Any] | None) -> str:
    """A speedup; with the share of MACs where that is another one than asked for."""
    if found is None:
        return "–"
    middle, low, high = found["speedup"]
    unsure = "~" if low <= 1 <= high else ""
    other = abs(found["macs"] - found["share"]) > CLOSE
    return f"{unsure}{middle:.2f}" + (f" (at {found['macs']:.2f})" if other else "")
