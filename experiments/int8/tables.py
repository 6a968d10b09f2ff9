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
