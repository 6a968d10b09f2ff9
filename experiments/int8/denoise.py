"""DnCNN in int8, searched for speed over the float original at 1x1x256x256.

    PYTHONPATH=. python experiments/int8/denoise.py --data ../shared/data [--speedups 4 5] [--again]
    PYTHONPATH=. python experiments/int8/denoise.py --data ../shared/data --sweep 2 3 4 5 6

PSNR in dB on Set12 as ONNX Runtime runs each file; fitted to crops of training photographs, nothing
trained. A row for each speedup, in denoise.json, and one search for the whole curve; the tables are
denoise.md. On an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import factorize
from factorize.measure.environment import environment
from factorize.search import SearchConfig

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "fit"))
CROPS, HELD_OUT, SIDE = 320, 64, 256
CURVE = "curve"


def main() -> None:
    """Make the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of trained nets")
    parser.add_argument("--speedups", nargs="+", type=float, default=[4.0, 5.0])
    parser.add_argument("--sweep", nargs="+", type=float, default=[])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = HERE / "denoise.json"
    wanted: list[float | tuple[float, ...]] = [*options.speedups]
    if options.sweep:
        wanted = [tuple(options.sweep)]
    for asked in wanted:
        content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        key = CURVE if isinstance(asked, tuple) else f"{asked:g}"
        if key in content and not options.again:
            continue
        row = {**_row(options.data, asked, options.threads), "environment": environment()}
        print(asked, row, flush=True)
        content[key] = row
        path.write_text(json.dumps(content, indent=1) + "\n")
        _write(content)


def _row(folder: Path, asked: float | tuple[float, ...], threads: int) -> dict[str, Any]:
    from tasks import task

    net = task("dncnn", folder)
    crops = net.calibration(CROPS, 0)
    data = factorize.Data(
        [(b,) for b in crops[HELD_OUT:].split(net.batch)],
        [(b,) for b in crops[:HELD_OUT].split(net.batch)],
        labelled=False,
    )

    def psnr(model: nn.Module) -> float:
        return net.score(model)

    x = torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    wish: dict[str, Any] = {"search": SearchConfig(sweep=asked)} if isinstance(asked, tuple) else {
        "budget": factorize.Budget(speedup=asked)
    }  # fmt: skip
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        report = factorize.compress(
            net.model, x, data=data, int8=True, evaluate=psnr, **wish,
            threads=threads, device="cpu", out=Path(out, "dncnn"),
        ).report  # fmt: skip
    return {
        "seconds": time.perf_counter() - start,
        "macs": report.macs["compressed"] / report.macs["original"],
        "psnr": {step: values["psnr"] for step, values in report.quality.items()},
        "speed": {
            one.net or "int8": [one.speedup, one.speedup_p10, one.speedup_p90]
            for one in report.speed
            if one.runtime == "onnxruntime"
        },
        "original_ms": report.speed[0].original.median_ms,
        "threads": threads,
        "methods": sorted({layer.method or "dense" for layer in report.layers}),
        "curve": [asdict(point) for point in report.curve],
    }


def _write(content: dict[str, Any]) -> None:
    lines = [
        "# DnCNN in int8\n",
        "    PYTHONPATH=. python experiments/int8/denoise.py --data ../shared/data\n",
        "Speed over the float original, the median of pairs of runs (10th to 90th percentile); "
        "PSNR on Set12.\n",
        "| asked for | share of MACs | int8 | dB | same chains in float | dB | int8 alone | dB "
        "| float dB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = {asked: row for asked, row in sorted(content.items()) if asked != CURVE}
    for asked, row in rows.items():
        speed, psnr = row["speed"], row["psnr"]
        exact = [v for step, v in psnr.items() if step in ("rewritten", "recalibrated")][-1]
        cells = [f"{asked}x", f"{row['macs']:.2f}"]
        for name, value in (
            ("int8", psnr["int8"]), ("in float32", exact), ("int8 alone", psnr["int8 alone"]),
        ):  # fmt: skip
            middle, low, high = speed[name]
            cells += [f"{middle:.2f} ({low:.2f}..{high:.2f})", f"{value:.2f}"]
        lines.append(f"| {' | '.join(cells)} | {psnr['original']:.2f} |")
    lines += ["", *(_about(row, f"{asked}x") for asked, row in rows.items())]
    if CURVE in content:
        lines += _curve(content[CURVE])
    (HERE / "denoise.md").write_text("\n".join(lines) + "\n")


def _curve(row: dict[str, Any]) -> list[str]:
    """One search for several speedups; nets timed as they are assembled."""
    lines = [
        "\n## The curve\n", "| net | speed | dB | share of MACs |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    middle, low, high = row["speed"]["int8 alone"]
    alone = f"| int8 alone | {middle:.2f} ({low:.2f}..{high:.2f}) "
    lines.append(f"{alone}| {row['psnr']['int8 alone']:.2f} | 1.00 |")
    for one in row["curve"]:
        name = f"{one['wanted']:g}x asked for" if one["kind"] == "search" else one["label"]
        speed = f"{one['speedup']:.2f} ({one['speedup_p10']:.2f}..{one['speedup_p90']:.2f})"
        lines.append(f"| {name} | {speed} | {one['quality']['psnr']:.2f} | {one['macs']:.2f} |")
    return [*lines, "", _about(row, "the curve")]


def _about(row: dict[str, Any], what: str) -> str:
    about = row["environment"]
    return (
        f"{what}: {about['cpu']}, {row['threads']} threads, torch {about['torch']}, onnxruntime "
        f"{about['onnxruntime']}, seed 0, {row['seconds']:.0f} s.\n"
    )


if __name__ == "__main__":
    main()
