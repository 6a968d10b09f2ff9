"""Write the tables of README.md from the JSON files beside it.

python experiments/fit/tables.py
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

HERE = Path(__file__).parent
MARK = "<!-- made by tables.py: do not edit below -->\n"
FITS = ("weights", "outputs", "sequential", "reconstruct")
FORWARD = "forward passes of both nets"  # what the other stages leave
NETS = ("resnet20", "resnet56", "dncnn")
Row = dict[str, Any]


def main() -> None:
    """Replace all below the mark."""
    rows = _read("results.json")
    dense = {row["net"]: f"{row['score']:.2f}" for row in rows if row["method"] == "dense"}
    rows = [row for row in rows if row["method"] != "dense"]
    timed = [row for row in _read("time_resnet20.json") if row["method"] != "dense"]
    parts = [_machine(rows)]
    parts += [_by_fit(n, rows, dense[n]) for n in NETS if any(r["net"] == n for r in rows)]
    parts += [_by_images(rows), _times(timed, _read("time_resnet18.json"))]
    parts.append(_fisher(_read("fisher.json")))
    readme = HERE / "README.md"
    head = readme.read_text().partition(MARK)[0]
    readme.write_text(head + MARK + "\n" + "\n".join(part for part in parts if part))


def _read(name: str) -> list[Row]:
    path = HERE / name
    return json.loads(path.read_text()) if path.exists() else []


def _machine(rows: list[Row]) -> str:
    one = rows[0]["environment"]
    loads = [row["environment"]["load"] for row in rows]
    keep = ("cpu", "cores", "os", "python", "torch", "torchvision")
    return (
        ", ".join(f"{key} {one[key]}" for key in keep) + "; "
        f"{sorted({r['environment']['threads'] for r in rows})} thread(s) of torch; load "
        f"average {min(loads)} to {max(loads)}: other runs beside it. {len(rows)} runs.\n"
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def _spread(values: list[float]) -> str:
    """Mean, and the range where there are several."""
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else ""
    return f"{mean(values):.2f} ({min(values):.2f}..{max(values):.2f})"


def _by_fit(net: str, rows: list[Row], dense: str) -> str:
    counts = sorted({r["images"] for r in rows if r["net"] == net}, key=lambda n: abs(n - 1000))
    rows = [r for r in rows if r["net"] == net and r["images"] == counts[0]]
    shares = sorted({r["share"] for r in rows}, reverse=True)
    body = []
    for method in dict.fromkeys(r["method"] for r in rows):
        for fit in FITS:
            found = [r for r in rows if r["method"] == method and r["fit"] == fit]
            if found:
                scores = [_spread([r["score"] for r in found if r["share"] == s]) for s in shares]
                seeds = len({r["seed"] for r in found})
                body.append([f"`{method}`", fit, seeds, *scores])
    unit = rows[0]["unit"]
    title = f"## {net}: {unit}, dense {dense}, {counts[0]} calibration images\n\n"
    return title + _table(["method", "fit", "seeds", *(f"{s} of the MACs" for s in shares)], body)


def _by_images(rows: list[Row]) -> str:
    few = [r for r in rows if r["fit"] == "sequential" and r["share"] == 0.5]
    body = []
    for net in NETS:
        for method in dict.fromkeys(r["method"] for r in few if r["net"] == net):
            found = [r for r in few if r["net"] == net and r["method"] == method]
            if len({r["images"] for r in found}) < 3:
                continue
            for images in sorted({r["images"] for r in found}):
                same = [r for r in found if r["images"] == images]
                errors = [f"{mean(r[k] for r in same):.4f}" for k in ("error", "held_out_error")]
                body.append([net, f"`{method}`", images, len(same), *errors,
                             _spread([r["score"] for r in same])])  # fmt: skip
    head = ["net", "method", "images", "seeds", "error, fitted", "error, held out", "score"]
    return "## Few images: sequential fit at half the MACs\n\n" + _table(head, body) if body else ""


def _times(whole: list[Row], alone: list[Row]) -> str:
    text = ""
    if whole:
        text += "## Seconds: all three budgets of resnet20, 1,000 images\n\n"
        body = []
        for method in dict.fromkeys(r["method"] for r in whole):
            same = [r for r in whole if r["method"] == method]
            once = same[0]["seconds"]
            fits = [r["seconds"]["fit"] for r in same]
            total = sum(v for k, v in once.items() if k != "fit") + sum(fits)
            before = [f"{once[k]:.1f}" for k in ("calibrate", "curves", "sensitivities")]
            body.append([f"`{method}`", *before,
                         ", ".join(f"{f:.1f}" for f in fits), f"{total:.1f}"])  # fmt: skip
        head = ["method", "calibrate", "curves", "sensitivities", "fits", "total"]
        text += _table(head, body) + "\n"
    if alone:
        text += (
            "## Seconds: torchvision's resnet18 at 224, sequential fit at half of each layer\n\n"
        )
        stages = [name for name in alone[0]["stages"] if name != FORWARD]
        body = [
            [f"`{r['method']}`", r["images"], f"{r['seconds']:.0f}",
             *(f"{r['stages'][s]:.0f}" for s in stages),
             f"{r['seconds'] - sum(r['stages'][s] for s in stages):.0f}",
             r["before_gb"], r["peak_gb"], f"{r['threads']}, {r['load']}"]
            for r in alone
        ]  # fmt: skip
        head = [
            "method",
            "images",
            "all",
            *stages,
            FORWARD,
            "GB before",
            "GB peak",
            "threads, load",
        ]
        text += _table(head, body)
    return text


def _fisher(rows: list[Row]) -> str:
    body = []
    keys = ("net", "method", "share", "plan_by", "damping")
    for key in dict.fromkeys(tuple(r[k] for k in keys) for r in rows):
        same = [r["score"] for r in rows if tuple(r[k] for k in keys) == key]
        net, method, share, plan_by, damping = key
        norm = "plain" if damping is None else f"Fisher, damping {damping}"
        body.append([net, f"`{method}`", share, plan_by, norm, len(same), _spread(same)])
    head = ["net", "method", "MACs left", "ranks by", "norm", "seeds", "top-1 %"]
    title = "## Fisher-weighted output norm, sequential fit\n\n"
    return title + _table(head, body) if body else ""


if __name__ == "__main__":
    main()
