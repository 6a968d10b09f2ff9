"""Write the tables of README.md from results.json.

python experiments/gpu/tables.py
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
MARK = "<!-- made by tables.py: do not edit below -->\n"
MODES = {"eager": "eager", "compile": "torch.compile", "cuda_graphs": "CUDA graphs"}
Row = dict[str, Any]


def main() -> None:
    """Replace all below the mark."""
    rows: list[Row] = json.loads((HERE / "results.json").read_text())
    readme = HERE / "README.md"
    head = readme.read_text().partition(MARK)[0]
    readme.write_text(head + MARK + "\n" + text(rows))


def text(rows: list[Row]) -> str:
    """Every GPU's tables."""
    parts = []
    for gpu in _distinct(rows, "gpu"):
        own = [row for row in rows if row["gpu"] == gpu]
        parts += [f"## {gpu}\n", _machine(own)]
        for net in _distinct(own, "net"):
            of_net = [row for row in own if row["net"] == net]
            parts += [f"### {net}\n", _factorized(of_net)]
            timed = [row for row in of_net if row["kind"] == "time"]
            parts += [_timed(timed, batch) for batch in sorted(set(_distinct(timed, "batch")))]
            parts += [_searched([row for row in of_net if row["kind"] == "search"])]
    return "\n".join(part for part in parts if part)


def _machine(rows: list[Row]) -> str:
    one, loads = rows[-1]["environment"], [row["load"] for row in rows]
    tf32 = {row["tf32"] for row in rows if "tf32" in row}
    return (
        f"{one['cpu']}, {one['cores']} cores, {one['os']}, Python {one['python']}, torch "
        f"{one['torch']}; load average {min(loads):.1f} to {max(loads):.1f}; TF32 in convolutions "
        f"of float32: {' and '.join('on' if on else 'off' for on in sorted(tf32)) or 'not known'}."
        "\n"
    )


def _factorized(rows: list[Row]) -> str:
    lines = [["method", "MACs asked", "MACs left", "parameters left", "layers", "seconds"]]
    for row in rows:
        if row["kind"] == "factorize":
            left = [row.get("message", ""), "", ""]
            if "macs_left" in row:
                layers = str(sum(row["layers"].values()))
                left = [f"{row['macs_left']:.3f}", f"{row['params_left']:.3f}", layers]
            lines.append([row["method"], f"{row['macs']:g}", *left, f"{row['seconds']:.1f}"])
    return _table(lines)


def _timed(rows: list[Row], batch: int) -> str:
    """Speedups at one batch: a row per net, a column per dtype and mode."""
    rows = [row for row in rows if row["batch"] == batch]
    columns = [(dtype, mode) for dtype in _distinct(rows, "dtype") for mode in MODES
               if any((row["dtype"], row["mode"]) == (dtype, mode) for row in rows)]  # fmt: skip

    def of(column: tuple[str, str], **key: Any) -> list[Row]:
        wanted = {"dtype": column[0], "mode": column[1], **key}
        return [row for row in rows if wanted.items() <= row.items()]

    dense = []
    for column in columns:
        ms = [row["original_ms"][0] for row in of(column) if "original_ms" in row]
        dense.append(f"{median(ms):.3f} ms" if ms else "")
    heads = [f"{dtype}, {MODES[mode]}" for dtype, mode in columns]
    lines = [[f"batch {batch}", "MACs", *heads], ["dense (median)", "1", *dense]]
    for method in _distinct(rows, "method"):
        for share in sorted({row["macs"] for row in rows if row["method"] == method}, reverse=True):
            found = [of(column, method=method, macs=share) for column in columns]
            lines.append([method, f"{share:g}", *(_speed(one[0]) if one else "" for one in found)])
    return _table(lines)


def _searched(rows: list[Row]) -> str:
    lines = [["asked", "batch", "dtype, mode", "measured (p10..p90)", "predicted", "MACs left",
              "layers by method", "seconds", "chains timed, known"]]  # fmt: skip
    for row in rows:
        found = ["", "", "", f"{row['seconds']:.0f}", ""]
        if "macs_left" in row:
            layers = ", ".join(f"{method} {count}" for method, count in row["layers"].items())
            found[:3] = [f"{row['predicted']:.2f}", f"{row['macs_left']:.3f}", layers]
            found[4] = f"{row['chains_timed']}, {row['chains_cached']}"
        how = f"{row['dtype']}, {MODES[row['mode']]}"
        lines.append([f"{row['asked']:g}x", str(row["batch"]), how, _speed(row), *found])
    return _table(lines)


def _speed(row: Row) -> str:
    if "message" in row:
        return row["message"]
    middle, low, high = row["speedup"]
    return f"{middle:.2f} ({low:.2f}..{high:.2f})"


def _distinct(rows: list[Row], name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in rows))


def _table(lines: list[list[str]]) -> str:
    if len(lines) == 1:
        return ""
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
