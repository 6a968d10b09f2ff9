"""Tables of `compare_peers.py`: ``python scripts/peer_tables.py RESULTS.json``.

They replace all that follows the mark in the README.md beside the results.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path

from benchmark_tables import Row

MARK = "<!-- made by scripts/peer_tables.py: do not edit below -->"


def tables(rows: list[Row]) -> list[str]:
    """Markdown: per group a summary by side, and the output error of every layer."""
    lines = []
    for group in dict.fromkeys(row["group"] for row in rows):
        mine = [row for row in rows if row["group"] == group]
        sides = list(dict.fromkeys((row["chain"], row["side"]) for row in mine))
        layers = list(dict.fromkeys(row["layer"] for row in mine))
        lowest = [f"{who} {mean:.4f}" for who, mean in _lowest(mine, layers).items()]
        header = [
            "chain", "by", "MACs share", "output error", "range over layers", "spread over seeds",
            "weight error", "s", "min-max", "failed",
        ]  # fmt: skip
        lines += ["", f"## {group}: means and total seconds of {len(layers)} layers", ""]
        lines += [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
        for name, side in sides:
            all_of = [row for row in mine if (row["chain"], row["side"]) == (name, side)]
            done = [row for row in all_of if "seconds" in row]
            failed = sum(len(row["failures"]) for row in all_of)
            cells = [name, side, f"{statistics.mean(r['macs_share'] for r in all_of):.3f}"]
            if done:
                errors = [row["output_error"] for row in done]
                widths = [high - low for low, high in (row["output_error_range"] for row in done)]
                cells += [
                    f"{statistics.mean(errors):.4f}", f"{min(errors):.3f}-{max(errors):.3f}",
                    f"{max(widths):.4f}", f"{statistics.mean(r['weight_error'] for r in done):.4f}",
                    f"{sum(r['seconds'] for r in done):.3f}",
                    f"{sum(r['min'] for r in done):.3f}-{sum(r['max'] for r in done):.3f}",
                ]  # fmt: skip
            cells += [""] * (9 - len(cells)) + [f"{failed} runs" if failed else ""]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", f"Lowest output error of a layer, mean: {', '.join(lowest)}."]
        lines += ["", f"### {group}: output error of each layer", ""]
        lines += [f"| layer | kernel | {' | '.join(f'{n}: {s}' for n, s in sides)} |"]
        lines += [f"|{'---|' * (len(sides) + 2)}"]
        for layer in layers:
            by_side = {(r["chain"], r["side"]): r for r in mine if r["layer"] == layer}
            shape = "x".join(map(str, next(iter(by_side.values()))["shape"]))
            errors = [by_side[side].get("output_error") for side in sides]
            cells = ["failed" if error is None else f"{error:.4f}" for error in errors]
            lines.append(f"| {layer} | {shape} | {' | '.join(cells)} |")
    said = [f"- {r['group']} {r['layer']}, {r['side']}, rank {r['rank']}: {one}"
            for r in rows for one in r["failures"]]  # fmt: skip
    return lines + (["", "## Failures", "", *said] if said else [])


def _lowest(rows: list[Row], layers: list[str]) -> dict[str, float]:
    """By side, a peer's methods taken together: the layers' lowest output errors, averaged."""
    best: dict[str, dict[str, float]] = {}
    for row in rows:
        if "output_error" in row:
            who = row["side"] if row["side"].startswith("ours") else row["side"].split()[0]
            of_layer = best.setdefault(who, {})
            of_layer[row["layer"]] = min(of_layer.get(row["layer"], math.inf), row["output_error"])
    return {who: statistics.mean(e.values()) for who, e in best.items() if len(e) == len(layers)}


def write_readme(results: Row, path: Path) -> None:
    """Put the tables after the mark of a README; what stands before it stays."""
    head = path.read_text(encoding="utf-8").partition(MARK)[0] if path.exists() else ""
    run = results["run"]
    env, peers = run["environment"], ", ".join(f"{k} {v}" for k, v in run["peers"].items())
    about = (
        f"{run['started']}, {env['cpu']}, {run['threads']} thread; ours: python {env['python']}, "
        f"torch {env['torch']}; peers: {peers}. {run['repeats']} runs each, seeds from "
        f"{run['seed']}; {run['calibration']} calibration and {run['held_out']} held-out images; "
        f"load average {run['load_start'][0]:.1f} at the start, {run['load_end'][0]:.1f} at the "
        f"end; {run['minutes']:.1f} minutes."
    )
    lines = [MARK, "", about, *tables(results["rows"])]
    path.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    source = Path(sys.argv[1])
    write_readme(json.loads(source.read_text(encoding="utf-8")), source.with_name("README.md"))
