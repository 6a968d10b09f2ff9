"""The tables of README.md, below its mark."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

MARK = "<!-- made by run.py: do not edit below -->"
COLUMNS = ("real", "made up", "weights")


def write(page: Path, content: dict[str, Any]) -> None:
    """Replace what is below the mark."""
    machine = content["environment"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}. Top-1 in percent "
        "on test images (DnCNN: PSNR in dB on Set12); of several seeds the mean, and the range.",
        "",
        "| net, chains | MACs | original | real images | made up | weights |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for part in ("digits", "uniform", "searched"):
        for name, row in content.get(part, {}).items():
            cells = " | ".join(_spread(row[column]) for column in COLUMNS)
            share = f"{row['macs']:.2f}" if "macs" in row else ""
            lines.append(f"| {name} | {share} | {row['original']:.2f} | {cells} |")
    lines += ["", "What each part is worth, seed 0, the same chains:", "", "| fitted to | top-1 |",
              "| --- | --- |"]  # fmt: skip
    lines += [
        f"| {name} | {row['top1']:.2f} |" for name, row in content.get("ablation", {}).items()
    ]
    lines += ["", "More images, ResNet-20, `spatial_svd`, energy 0.75:", "",
              "| images | top-1 | seconds to make and choose | whole run |",
              "| --- | --- | --- | --- |"]  # fmt: skip
    lines += [
        f"| {name} | {row['top1']:.2f} | {row['making']:.0f} | {row['whole']:.0f} |"
        for name, row in content.get("counts", {}).items()
    ]
    text = page.read_text().partition(MARK)[0]
    page.write_text("\n".join([text.rstrip(), "", MARK, "", *lines, ""]))


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ({min(values):.2f}..{max(values):.2f})"
