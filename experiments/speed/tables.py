"""Write the table of README.md from results.json.

python experiments/speed/tables.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MARK = "<!-- made by tables.py: do not edit below -->\n"
HEAD = (
    "net", "methods", "asked", "measured (p10..p90)", "predicted", "predicted / measured time",
    "MACs ratio", "speedup / MACs ratio", "slower layers", "cache", "seconds", "peak GB", "exit",
    "processor",
)  # fmt: skip


def main() -> None:
    """Replace all below the mark."""
    rows = json.loads((HERE / "results.json").read_text())
    one = next(row["environment"] for row in rows if "environment" in row)
    loads = [row["load"] for row in rows if "load" in row]
    text = (
        f"{one['cores']} cores, {one['os']}, Python {one['python']}, torch "
        f"{one['torch']}, onnxruntime {one['onnxruntime']}; load average {min(loads):.1f} to "
        f"{max(loads):.1f}.\n\n"
    )
    lines = ["| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    readme = HERE / "README.md"
    head = readme.read_text().partition(MARK)[0]
    readme.write_text(head + MARK + "\n" + text + "\n".join(lines) + "\n")


def _cells(row: dict[str, Any]) -> list[str]:
    first = [row["net"], row["method"], f"{row['speedup']:g}x"]
    last = [
        "empty" if row["empty_cache"] else "full", f"{row['seconds']:.0f}",
        f"{row['peak_gb']:.1f}", str(row["exit_code"]),
        row.get("environment", {}).get("cpu", ""),
    ]  # fmt: skip
    if "measured" not in row:
        return [*first, row["message"], *[""] * 5, *last]
    measured, low, high = row["measured"]
    return [
        *first, f"{measured:.2f}x ({low:.2f}..{high:.2f})", f"{row['predicted']:.2f}x",
        f"{measured / row['predicted']:.3f}", f"{row['macs_ratio']:.2f}",
        f"{measured / row['macs_ratio']:.2f}", str(row["slower_layers"]), *last,
    ]  # fmt: skip


if __name__ == "__main__":
    main()
