"""The tables of README.md, below its mark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

MARK = "<!-- made by run.py: do not edit below -->"
COLUMNS = ("real", "made up", "weights")
FLOORS = {
    "resnet20": {"0.5": 91.5, "0.4": 90.8, "0.3": 89.5},
    "resnet56": {"0.5": 93.2, "0.3": 92.2, "0.2": 88.5},
    "dncnn": {"0.5": 32.55},
}
GOALS = (0.1, 0.3, 0.5)
"""Points that the best may be below the best on real images, from the largest share on."""
EXAMPLE = 95.0  # percent of the digits
QUICK = 20.0  # seconds for a thousand large images


def write(page: Path, content: dict[str, Any]) -> None:
    """Replace what is below the mark."""
    machine = content["environment"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}. Top-1 in percent "
        "on test images (DnCNN: PSNR in dB on Set12); of several seeds the mean, and the range.",
        *_budgets(content.get("budgets", {})),
        *_blocks(content.get("budgets", {})),
        "",
        "Chains by a rule (the digits: rank 8, goal at least "
        f"{EXAMPLE:g} on made-up images; else 0.75 of each kernel's energy):",
        "",
        "| net, chains | MACs | original | real images | made up | weights |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for part in ("digits", "uniform"):
        for name, row in content.get(part, {}).items():
            cells = " | ".join(_spread(row[column]) for column in COLUMNS)
            share = f"{row['macs']:.2f}" if "macs" in row else ""
            lines.append(f"| {name} | {share} | {row['original']:.2f} | {cells} |")
    lines += ["", "What each part is worth, seed 0, the same chains:", "", "| fitted to | top-1 |",
              "| --- | --- |"]  # fmt: skip
    lines += [
        f"| {name} | {row['top1']:.2f} |" for name, row in content.get("ablation", {}).items()
    ]
    lines += ["", "More images, ResNet-20, `spatial_svd`, energy 0.75 (none inverted of 4,000, "
              "which would take too long):", "",
              "| images | top-1 | seconds to make and choose | whole run | threads |",
              "| --- | --- | --- | --- | --- |"]  # fmt: skip
    lines += [
        f"| {name} | {row['top1']:.2f} | {row['making']:.0f} | {row['whole']:.0f} | "
        f"{row.get('threads', '')} |"
        for name, row in content.get("counts", {}).items()
    ]
    lines += ["", f"To make images, nothing chosen (goal for 224x224: {QUICK:g} s):", "",
              "| | seconds | threads |", "| --- | --- | --- |"]  # fmt: skip
    lines += [
        f"| {name} | {row['seconds']:.1f} | {row['threads']} |"
        for name, row in content.get("times", {}).items()
    ]
    text = page.read_text().partition(MARK)[0]
    page.write_text("\n".join([text.rstrip(), "", MARK, "", *lines, ""]))


def _budgets(rows: Mapping[str, Any]) -> list[str]:
    """The searched nets, and the best of each share beside floor and goal."""
    scores: dict[tuple[str, str, str], dict[str, dict[str, float]]] = {}
    for name, row in rows.items():
        net, method, source, seed = name.split(", ")
        for share, point in row["points"].items():
            ours = scores.setdefault((net, share, method), {})
            ours.setdefault(source, {})[seed] = point["score"]
    lines = ["", "Searched within shares of the MACs, all shares of a net in one search:", "",
             "| net | MACs | chains | real images | made up | weights |",
             "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    best = ["", "The best of these methods on made-up images beside the best on real ones (those "
            "seeds that both have):", "",
            "| net | MACs | made up | floor | real | below real | goal |",
            "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for net, floors in FLOORS.items():
        for number, (share, floor) in enumerate(floors.items()):
            found = {key[2]: one for key, one in scores.items() if key[:2] == (net, share)}
            for method, one in found.items():
                cells = " | ".join(_spread([*one.get(column, {}).values()]) for column in COLUMNS)
                lines.append(f"| {net} | {share} | `{method}` | {cells} |")
            both = [pair for one in found.values() if (pair := _shared(one))]
            if both:
                made, real = (max(column) for column in zip(*both, strict=True))
                goal = "" if net == "dncnn" else f"{GOALS[number]:g}"
                best.append(f"| {net} | {share} | {made:.2f} | {floor:g} | {real:.2f} | "
                            f"{real - made:.2f} | {goal} |")  # fmt: skip
            elif made_up := [one["made up"] for one in found.values() if "made up" in one]:
                alone = max(mean(seeds.values()) for seeds in made_up)
                best.append(f"| {net} | {share} | {alone:.2f} | {floor:g} | | | |")
    return lines + best


def _blocks(rows: Mapping[str, Any]) -> list[str]:
    """The searched nets on made-up images, before and after their blocks are tuned."""
    scores: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for name, row in rows.items():
        net, method, *_ = name.split(", ")
        for share, point in row["points"].items():
            if (alone := point.get("fitted alone")) is not None:
                scores.setdefault((net, share, method), []).append((alone, point["score"]))
    lines = ["", "The same nets on made-up images before and after the factors of each block are "
             "tuned together:", "", "| net | MACs | chains | seeds | before | after |",
             "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for (net, share, method), pairs in sorted(scores.items()):
        before, after = (mean(column) for column in zip(*pairs, strict=True))
        lines.append(
            f"| {net} | {share} | `{method}` | {len(pairs)} | {before:.2f} | {after:.2f} |"
        )
    return lines


def _shared(one: Mapping[str, Mapping[str, float]]) -> tuple[float, float] | None:
    """Means on made-up and on real images of the seeds that both have."""
    made, real = one.get("made up", {}), one.get("real", {})
    seeds = made.keys() & real.keys()
    return (mean(made[s] for s in seeds), mean(real[s] for s in seeds)) if seeds else None


def _spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else ""
    return f"{mean(values):.2f} ({min(values):.2f}..{max(values):.2f})"
