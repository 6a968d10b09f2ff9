"""How the time of a search grows: with layers, channels, images and methods, one at a time.

    PYTHONPATH=. python experiments/search/growth.py

Nets are stacks of 3x3 convolutions with random weights, searched at half their MACs on made-up
images of 32x32. Writes growth.json and growth.svg.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from torch import nn

import factorize
from factorize.data.synthetic import synthetic_data
from factorize.measure.environment import environment

HERE = Path(__file__).parent
METHODS = ("cp", "spatial_svd", "tucker2", "channel_svd", "depthwise_pointwise", "tensor_train",
           "cp4", "block_term")  # fmt: skip
USUAL: dict[str, Any] = {"layers": 8, "channels": 32, "images": 500, "methods": 4}
AXES: dict[str, tuple[int, ...]] = {
    "layers": (4, 8, 16),
    "channels": (16, 32, 64),
    "images": (250, 500, 1000),
    "methods": (1, 2, 4, 8),
}


def main() -> None:
    """Run every point, then draw."""
    torch.manual_seed(0)
    _seconds(USUAL)  # imports, and whatever else is slow once
    rows = []
    for axis, values in AXES.items():
        for value in values:
            rows.append({"axis": axis, "value": value, **_seconds({**USUAL, axis: value})})
            print(rows[-1], flush=True)
    content = {"environment": environment(), "usual": USUAL, "rows": rows}
    (HERE / "growth.json").write_text(json.dumps(content, indent=1) + "\n")
    _draw(content)


def _seconds(at: dict[str, Any]) -> dict[str, Any]:
    """Of the steps of one search; nothing is known from an earlier one."""
    shape, wide = (3, 32, 32), at["channels"]
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Conv2d(inner, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU())
        for inner in [shape[0], *[wide] * (at["layers"] - 1)]
    ]
    net = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, 10)).eval()
    data = synthetic_data(shape, count=at["images"] * 5 // 4)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["FACTORIZE_CACHE"] = cache
        result = factorize.compress(
            net, torch.zeros(1, *shape), method=",".join(METHODS[: at["methods"]]),
            budget=factorize.Budget(macs=0.5), data=data, latency=False,
            fit=factorize.FitConfig(images=at["images"]),
        )  # fmt: skip
    steps = ("look at chains", "fit chains", "fit nets", "judge nets")
    seconds = {step: result.report.seconds.get(step, 0.0) for step in steps}
    return {**seconds, "chains fitted": result.report.search.errors_made}


def _draw(content: dict[str, Any]) -> None:
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    for place, axis in zip(figure.subplots(1, len(AXES)), AXES, strict=True):
        rows = [row for row in content["rows"] if row["axis"] == axis]
        values = [row["value"] for row in rows]
        below = [0.0] * len(rows)
        for step in ("look at chains", "fit chains", "fit nets"):
            above = [low + row[step] for low, row in zip(below, rows, strict=True)]
            place.fill_between(values, below, above, alpha=0.6, linewidth=0, label=step)
            below = above
        place.set(xlabel=axis, xlim=(0, max(values)), ylim=(0, None))
        place.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("seconds")
    figure.axes[0].legend(frameon=False, fontsize="x-small")
    FigureCanvasSVG(figure).print_svg(HERE / "growth.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
