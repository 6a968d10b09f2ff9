"""Write the table of README.md from results.json.

python experiments/throughput/tables.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MARK = "<!-- made by tables.py: do not edit below -->\n"
HEAD = ("net", "batch", "precision", "machine", "the tool, images/s", "bare loop, images/s",
        "ratio (p10..p90)", "bouts")  # fmt: skip


def main() -> None:
    """Replace all below the mark."""
    rows: list[dict[str, Any]] = json.loads((HERE / "results.json").read_text())
    lines = [HEAD, ("---",) * len(HEAD), *map(_cells, rows)]
    readme = HERE / "README.md"
    head = readme.read_text().partition(MARK)[0]
    readme.write_text(head + MARK + "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    ratio, low, high = row["ratio"]
    layout = ", channels_last" if row["channels_last"] else ""
    torch = row["environment"]["torch"]
    return (
        row["net"], str(row["batch"]), row["precision"] + layout,
        f"{row['machine']}, {row['threads']} CPU thread(s), load {row['load']:.1f}, torch {torch}",
        f"{row['tool'][0]:,.0f}", f"{row['bare'][0]:,.0f}", f"{ratio:.3f} ({low:.3f}..{high:.3f})",
        f"{row['bouts']} of {row['steps']} steps",
    )  # fmt: skip


if __name__ == "__main__":
    main()
