"""Write the tables of README.md from results.json.

python experiments/cifar10/published/tables.py
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

HERE = Path(__file__).parent
MARK = "<!-- made by tables.py: do not edit below -->\n"
HEAD = ("net", "MACs left", "method", "in print (its base)", "original", "untrained", "tuned",
        "control", "tuned - original", "in print - base", "seeds", "recipe")  # fmt: skip
Row = dict[str, Any]


def main() -> None:
    """Replace all below the mark."""
    rows: list[Row] = json.loads((HERE / "results.json").read_text())
    config = json.loads((HERE / "config.json").read_text())
    recipes = list(dict.fromkeys((row["recipe"], row["images"]) for row in rows))
    lines = [_line(wanted, method, rows, recipe)
             for wanted in config["rows"] for method in wanted["methods"]
             for recipe in recipes]  # fmt: skip
    table = [_cells(HEAD), _cells(["---"] * len(HEAD)), *(line for line in lines if line)]
    readme = HERE / "README.md"
    head = readme.read_text().partition(MARK)[0]
    readme.write_text(head + MARK + "\n" + "\n".join([*_machines(rows), "", *table]) + "\n")


def _line(wanted: Row, method: str, rows: list[Row], recipe: tuple[str, Any]) -> str:
    """One row of the table; empty where nothing was run."""
    same = [row for row in rows if row["net"] == wanted["net"]
            and (row["recipe"], row["images"]) == recipe]  # fmt: skip
    runs = [r for r in same if r["method"] == method and r["macs_wanted"] == wanted["macs"]]
    if not runs:
        return ""
    controls = [row["quality"]["finetuned"] for row in same if row["method"] == "dense"]
    quality = [row["quality"] for row in runs]
    gains = [values["finetuned"] - values["original"] for values in quality]
    base, published = wanted["base"], wanted["published"]
    printed = "" if published is None else f"{published:.2f} ({base:.2f})"
    gain = wanted.get("gain", (published or 0) - (base or 0))
    part = f", {recipe[1]:,} images" if recipe[1] else ""
    return _cells([
        wanted["net"], f"{mean(row['macs'] for row in runs):.3f}", method,
        f"{printed} {wanted['by']}".strip(), _spread([q["original"] for q in quality]),
        _spread([q["rewritten"] for q in quality]), _spread([q["finetuned"] for q in quality]),
        _spread(controls), _spread(gains, "+.2f"), f"{gain:+.2f}", str(len(runs)),
        f"{recipe[0]}{part}",
    ])  # fmt: skip


def _spread(values: list[float], form: str = ".2f") -> str:
    """The mean, with the standard deviation over seeds where there are several."""
    if not values:
        return ""
    spread = f" ± {stdev(values):.2f}" if len(set(values)) > 1 else ""
    return f"{mean(values):{form}}{spread}"


def _machines(rows: list[Row]) -> list[str]:
    found = dict.fromkeys(
        f"{e['cpu']}, {e['cuda_device'] or 'no GPU'}, {row['threads']} thread(s), Python "
        f"{e['python']}, torch {e['torch']}"
        for row in rows
        for e in [row["environment"]]
    )
    return ["; ".join(found) + "."]


def _cells(values: Any) -> str:
    return "| " + " | ".join(values) + " |"


if __name__ == "__main__":
    main()
