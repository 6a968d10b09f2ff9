"""The tables of README.md, made of results.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MARK = "<!-- made by run.py: do not edit below -->"


def write(readme: Path, content: dict[str, Any]) -> None:
    """Put the table in the place of the one that is there."""
    above = readme.read_text().partition(MARK)[0] if readme.exists() else "# int8\n\n"
    lines = [
        "| net | share of MACs | fitted in float | then by the runtime's quantizer | "
        "`--int8`: float | `--int8`: int8 | lost to int8 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key, row in content.items():
        share = f"{row['macs']:.2f}" if "macs" in row else "1"
        before, after = row["float"], row["int8"]
        fitted = row.get("fitted in float", before)
        theirs = row.get("and then the runtime's", row.get("runtime's"))
        cells = (key, share, *(f"{v:.2f}" for v in (fitted, theirs, before, after)),
                 f"{before - after:+.2f}")  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    first = next(iter(content.values()))["environment"]
    machine = f"{first.get('cpu', first.get('device', ''))}, torch {first.get('torch', '')}"
    readme.write_text(f"{above}{MARK}\n\n{machine}\n\n" + "\n".join(lines) + "\n")


SPEED = "<!-- made by speed.py: do not edit below -->"


def write_speed(readme: Path, content: dict[str, Any]) -> None:
    """Put the table of speeds in the place of the one that is there."""
    folder = readme.parent / "speed.md"
    lines = [
        "# Speed over the float original\n",
        "    PYTHONPATH=. python experiments/int8/speed.py\n",
        "Median of pairs of runs; in brackets the 10th and the 90th percentile.\n",
        SPEED + "\n",
        "| net | chains | share of MACs | float32 | int8 | int8 over int8 alone |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in content.items():
        lines.append(f"| {name} | none | 1 | 1 | {row['int8']:.2f} | 1 |")
        for chains, one in row["chains"].items():
            cells = [name, chains, f"{one['macs']:.2f}"]
            cells += [
                f"{one[d][0]:.2f} ({one[d][1]:.2f}..{one[d][2]:.2f})" for d in ("float32", "int8")
            ]
            lines.append(f"| {' | '.join(cells)} | {one['int8'][0] / row['int8']:.2f} |")
    machines = {
        f"{row['environment'].get('cpu', '')}, {row['threads']} threads, torch "
        f"{row['environment'].get('torch', '')}, onnxruntime "
        f"{row['environment'].get('onnxruntime', '')}"
        for row in content.values()
    }
    lines.append("\n" + "; ".join(sorted(machines)))
    folder.write_text("\n".join(lines) + "\n")
