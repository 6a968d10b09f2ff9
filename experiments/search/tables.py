"""The tables of README.md, below its mark."""

from __future__ import annotations

import json
from math import exp, log
from pathlib import Path
from statistics import mean
from typing import Any

HERE = Path(__file__).parent
MARK = "<!-- made by tables.py: do not edit below -->"
LABELS = ("before", "now")


def write() -> None:
    """Replace what is below the mark."""
    page = HERE / "README.md"
    parts = [_commands(_read("results.json")), _accuracy(), _fits(_read("fits.json"))]
    lines = [line for part in parts for line in part]
    text = page.read_text().partition(MARK)[0] + MARK + "\n\n" + "\n".join(lines).strip() + "\n"
    page.write_text(text)


def _read(name: str) -> Any:
    path = HERE / name
    return json.loads(path.read_text()) if path.exists() else None


def _commands(rows: list[dict[str, Any]] | None) -> list[str]:
    if not rows:
        return []
    lines = [
        "## Whole commands", "",
        "Two cores, idle, one run each. Steps are those that the report has, in seconds; *search*",
        "is the rest of it.", "",
        "| net | budget | code | machine | seconds | of it the search | peak GB | top-1, dB or KL "
        "| steps |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    order = sorted(rows, key=lambda row: (row["net"], row["number"], LABELS.index(row["label"])))
    for row in order:
        again = ", again" if row["number"] else ""
        if "quality" not in row:
            told = row["message"].strip().splitlines()[-1][:80]
            cells = (
                row["net"], row["budget"] + again, row["label"], _machine(row), row["seconds"],
                "", "", told,
            )  # fmt: skip
            lines.append("| " + " | ".join(map(str, cells)) + " | |")
            continue
        after = list(row["quality"].values())[-1]
        name = next((n for n in ("psnr", "top1", "kl") if n in after), next(iter(after)))
        steps = row["seconds_by_step"]
        own = [s for n, s in steps.items() if n in _STEPS]
        told = ", ".join(f"{n} {s:.0f}" for n, s in steps.items() if s >= 0.5)
        lines.append(
            f"| {row['net']} | {row['budget']}{again} | {row['label']} | {_machine(row)} | "
            f"{row['seconds']:.0f} | {sum(own):.0f} | {row['peak_gb']:.1f} | "
            f"{name} {after[name]:.4g} | {told} |"
        )
    return [*lines, ""]


def _machine(row: dict[str, Any]) -> str:
    where = row["environment"]
    return f"{where['cpu']}, torch {where['torch'].partition('+')[0]}"


_STEPS = (
    "search", "list chains", "time layers", "look at chains", "fit chains", "fit nets",
    "judge nets", "time nets",
)  # fmt: skip


def _accuracy() -> list[str]:
    before, now = (_read(name) or [] for name in ("auto_before.json", "auto.json"))
    lines = [
        "## What the nets keep", "",
        "`auto` by MACs, nothing trained, 1,000 training images, on all test images: the mean of",
        "the seeds (the range), and the loss on the training images (KL).", "",
        "| net | MACs | seeds | before | loss | now | loss |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for net, share in dict.fromkeys((row["net"], row["share"]) for row in now):
        key = {"net": net, "share": share, "method": "auto", "sensitivity": "error"}
        ours, theirs = (
            {row["seed"]: row for row in rows if key.items() <= row.items()}
            for rows in (now, before)
        )
        both = sorted(ours.keys() & theirs.keys())
        if not both:
            continue
        cells = []
        for rows in (theirs, ours):
            cells.append(_spread([rows[seed]["score"] for seed in both]))
            cells.append(_spread([rows[seed]["judged_loss"] for seed in both], 4))
        lines.append(f"| {net} | {share:g} | {len(both)} | {' | '.join(cells)} |")
    return [*lines, ""] if now else []


def _fits(content: dict[str, Any] | None) -> list[str]:
    if not content:
        return []
    lines = [
        "## Less work for a fit", "",
        "Squared errors beside those of whole fits, geometric mean over three layers of ResNet-20",
        "and 0.3 and 0.6 of their MACs (the largest), and the time beside theirs:", "",
        "| method | quick | time | rough | time |", "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    rows = content["errors"]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for effort in ("QUICK", "ROUGH"):
            own = [row for row in rows if row["method"] == method]
            off = [row[effort][0] / row["WHOLE"][0] for row in own]
            took = sum(row[effort][1] for row in own) / sum(row["WHOLE"][1] for row in own)
            cells += [f"{exp(mean(map(log, off))):.2f} ({max(off):.2f})", f"{took:.2f}"]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines += [
        "", "Nets fitted in sequence, `cp`; KL divergence from the original on unseen images:", "",
        "| fit | patches | rank | KL, mean (range) | seconds |", "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    nets = content["nets"]
    keys = dict.fromkeys((row["rank"], row["effort"], row["patches"]) for row in nets)
    for rank, effort, patches in keys:
        own = [r for r in nets if (r["rank"], r["effort"], r["patches"]) == (rank, effort, patches)]
        seconds = mean(row["seconds"] for row in own)
        kl = _spread([row["kl"] for row in own], 4)
        shown = f"{patches:,}" if effort == "WHOLE" else f"{patches // 4:,}"
        lines.append(f"| {effort.lower()} | {shown} | {rank} | {kl} | {seconds:.0f} |")
    return [*lines, ""]


def _spread(values: list[float], digits: int = 2) -> str:
    if not values:
        return ""
    text = f"{mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ({min(values):.{digits}f}..{max(values):.{digits}f})"
    return text


if __name__ == "__main__":
    write()
