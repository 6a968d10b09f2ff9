"""Write the tables of README.md from results.json.

python experiments/zoo/tables.py
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MARK = "<!-- made by tables.py: do not edit below -->\n"
HEAD = (
    "model", "input", "layers", "rewritten", "full rank", "float64 (rounding)", "MACs at a quarter",
    "seen", "train", "load", "ONNX", "s", "GB",
)  # fmt: skip
Row = dict[str, Any]


def main() -> None:
    """Replace all below the mark."""
    rows: list[Row] = json.loads((HERE / "results.json").read_text())
    suites = list(dict.fromkeys(row["suite"] for row in rows))
    parts = [_machine(rows), _summary(rows, suites), _exceptions(rows), _left(rows)]
    parts += [_table(suite, [row for row in rows if row["suite"] == suite]) for suite in suites]
    readme = HERE / "README.md"
    head = readme.read_text().partition(MARK)[0]
    readme.write_text(head + MARK + "\n" + "\n".join(parts))


def _machine(rows: list[Row]) -> str:
    one = next(row["environment"] for row in rows if "environment" in row)
    return (
        f"{one['cpu']}, {one['os']}, Python {one['python']}, torch {one['torch']}, torchvision "
        f"{one['torchvision']}, onnxruntime {one['onnxruntime']}. {len(rows)} models, "
        f"{sum(row['total_seconds'] for row in rows) / 60:.0f} minutes in sum, at most "
        f"{max(row.get('peak_gb', 0) for row in rows):.1f} GB.\n"
    )


def _summary(rows: list[Row], suites: list[str]) -> str:
    lines = [["", "models", "refused", "original does not run", "passed", "failed", "exported"]]
    for suite in suites:
        own = [row for row in rows if row["suite"] == suite]
        counts = Counter(_verdict(row) for row in own)
        exported = sum(
            "chains" in row.get("onnx", {}) and "dense" not in row["onnx"] for row in own
        )
        told = [counts[what] for what in ("refused", "original does not run", "passed", "failed")]
        lines.append([suite, str(len(own)), *map(str, told), str(exported)])
    return _lines(lines)


def _verdict(row: Row) -> str:
    if "original" in row["failures"]:
        return "original does not run"
    if row["failures"]:
        return "failed"
    return "refused" if "refused" in row else "passed"


def _exceptions(rows: list[Row]) -> str:
    """Whatever is not as wished, with its cause."""
    found = []
    for row in rows:
        name = f"{row['suite']}:{row['model']}"
        found += [f"- {name}, {stage}: {cause}" for stage, cause in row["failures"].items()]
        if "refused" in row:
            found.append(f"- refused: {row['refused']}")
        if "not_recognised" in row:
            found.append(f"- {name}, not recognised: {row['not_recognised']}")
        if "found" in row and not row.get("full", {}).get("methods"):
            found.append(f"- {name}: no layer was rewritten")
        elif "quarter" in row and float(row["quarter"].get("difference", 0)) < 0.01:
            found.append(f"- {name}: its output hardly shows the layers")
        if "dense" in row.get("onnx", {}):
            found.append(f"- {name}, the original does not export: {row['onnx']['dense']}")
    return "## Exceptions\n\n" + "\n".join(found or ["None."]) + "\n"


def _left(rows: list[Row]) -> str:
    """Layers left dense, by reason."""
    counts: Counter[str] = Counter()
    models: Counter[str] = Counter()
    for row in rows:
        left = row.get("full", {}).get("left", {})
        counts.update(left)
        models.update(left.keys())
    lines = [["layers", "models", "why left dense at full rank"]]
    lines += [[str(count), str(models[why]), why] for why, count in counts.most_common()]
    return "## Layers left\n\n" + _lines(lines)


def _table(suite: str, rows: list[Row]) -> str:
    return f"## {suite}\n\n" + _lines([list(HEAD), *(_cells(row) for row in rows)])


def _cells(row: Row) -> list[str]:
    full, quarter, failures = row.get("full", {}), row.get("quarter", {}), row["failures"]
    onnx = row.get("onnx", {})

    def figure(found: Row, key: str) -> str:
        return f"{float(found[key]):.1e}" if key in found else ""

    def done(stage: str) -> str:
        return "failed" if stage in failures else "ok" if stage in row.get("seconds", {}) else ""

    double = f"{figure(full, 'float64')} ({figure(full, 'rounding')})" if "float64" in full else ""
    exported = "original neither" if "dense" in onnx else figure(onnx, "chains") or done("onnx")
    return [
        row["model"], "; ".join("x".join(map(str, shape)) for shape in row.get("input", [])[:1]),
        str(sum(row.get("found", {}).values())), str(sum(full.get("methods", {}).values())),
        figure(full, "float32"), double, str(quarter.get("macs", "")),
        figure(quarter, "difference"), done("train"), done("save and load"), exported,
        f"{row['total_seconds']:.0f}", f"{row.get('peak_gb', 0):.1f}",
    ]  # fmt: skip


def _lines(lines: list[list[str]]) -> str:
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
