"""Draw accuracy against measured speedup, from figures that are in experiments/ already.

    python scripts/draw_speedup.py

writes docs/images/accuracy-speedup.svg. Nothing is measured here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "accuracy-speedup.svg"

ORIGINAL, OURS, OURS_INT8, SVD, INT8 = (
    "the original", "factorize", "factorize --int8", "plain SVD of the weights", "int8 alone",
)  # fmt: skip
STYLES = {
    ORIGINAL: ("black", "s"), OURS: ("tab:blue", "o"), OURS_INT8: ("tab:purple", "D"),
    SVD: ("tab:red", "v"), INT8: ("tab:green", "^"),
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One net: how it was made, how fast it is beside the original, how well it answers."""

    way: str
    speedup: float
    score: float


def points() -> dict[str, list[Point]]:
    """Every net that has both a measured speedup on ONNX Runtime and a score, by chart."""
    return {"DnCNN, Set12: PSNR in dB": denoiser(), "ResNet-20, CIFAR-10: top-1 in %": classifier()}


def denoiser() -> list[Point]:
    """Nothing trained; plain SVD with its batch norms estimated anew."""
    dense = read("speed/dncnn-2x/report.json")
    found = [Point(ORIGINAL, 1.0, dense["quality"]["original"]["psnr"])]
    for name in ("dncnn-1.5x", "dncnn-2x"):
        report = read(f"speed/{name}/report.json")
        found.append(Point(OURS, speedup(report), report["quality"]["rewritten"]["psnr"]))
    plain = read("denoise/report.json")
    found.append(Point(SVD, speedup(plain), plain["quality"]["recalibrated"]["psnr"]))
    integers = read("int8/denoise.json")["curve"]
    alone = integers["speed"]["int8 alone"][0], integers["psnr"]["int8 alone"]
    found.append(Point(INT8, *alone))
    return found + [
        Point(OURS_INT8, point["speedup"], point["quality"]["psnr"])
        for point in integers["curve"]
        if point["kind"] == "search" and point["macs"] < 1  # with all MACs left it is int8 alone
    ]


def classifier() -> list[Point]:
    """The same; of int8 alone there is a score, and no time."""
    report = read("speed/resnet20-max-drop/report.json")
    quality = report["quality"]
    found = [
        Point(ORIGINAL, 1.0, quality["original"]["top1"]),
        Point(OURS, speedup(report), quality["rewritten"]["top1"]),
    ]
    plain = [run for run in read("cifar10/weights/results.json") if is_plain_svd(run["run"])]
    return found + [Point(SVD, speedup(r), r["quality"]["recalibrated"]["top1"]) for r in plain]


def is_plain_svd(settings: dict) -> bool:
    """One of the two SVDs, and no epoch of tuning."""
    return settings["method"].endswith("_svd") and "finetune" not in settings


def read(name: str) -> dict:
    """A JSON file of experiments/."""
    return json.loads((ROOT / "experiments" / name).read_text())


def speedup(report: dict) -> float:
    """On ONNX Runtime."""
    [found] = [one["speedup"] for one in report["speed"] if one["runtime"] == "onnxruntime"]
    return found


def draw(charts: dict[str, list[Point]]) -> Figure:
    """One chart beside the other."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    named = {}
    for axes, (title, nets) in zip(figure.subplots(1, len(charts)), charts.items(), strict=True):
        for way, (colour, marker) in STYLES.items():
            of_way = sorted((p.speedup, p.score) for p in nets if p.way == way)
            if of_way:
                named[way] = axes.plot(*zip(*of_way, strict=True), marker, color=colour)[0]
        axes.axhline(nets[0].score, color="0.85", zorder=0)
        axes.set(title=title, xlabel="times as fast, ONNX Runtime, 2 threads")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    ways = [way for way in STYLES if way in named]
    figure.legend([named[way] for way in ways], ways, loc="outside lower center", ncols=5,
                  frameon=False)  # fmt: skip
    return figure


if __name__ == "__main__":
    mpl.rcParams["svg.hashsalt"] = "factorize"  # the same file each time
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    draw(points()).savefig(PICTURE, metadata={"Date": None})
    for title, nets in points().items():
        print(title)
        for net in nets:
            print(f"  {net.way}: {net.speedup:.2f}x, {net.score:.2f}")
