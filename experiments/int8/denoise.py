"""DnCNN in int8, searched for speed over the float original at 1x1x256x256.

    PYTHONPATH=. python experiments/int8/denoise.py --data ../shared/data [--speedups 4 5] [--again]

PSNR in dB on Set12 as ONNX Runtime runs each file; fitted to crops of training photographs, nothing
trained. A row for each speedup, in denoise.json; the table is denoise.md. On an otherwise idle
machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import factorize
from factorize.measure.environment import environment

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "fit"))
CROPS, HELD_OUT, SIDE = 320, 64, 256


def main() -> None:
    """Make the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of trained nets")
    parser.add_argument("--speedups", nargs="+", type=float, default=[4.0, 5.0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = HERE / "denoise.json"
    for asked in options.speedups:
        content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        if f"{asked:g}" in content and not options.again:
            continue
        row = {**_row(options.data, asked, options.threads), "environment": environment()}
        print(asked, row, flush=True)
        content[f"{asked:g}"] = row
        path.write_text(json.dumps(content, indent=1) + "\n")
        _write(content)


def _row(folder: Path, asked: float, threads: int) -> dict[str, Any]:
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
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        report = factorize.compress(
            net.model, x, data=data, budget=factorize.Budget(speedup=asked), int8=True,
            evaluate=psnr, threads=threads, device="cpu", out=Path(out, "dncnn"),
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
    for asked, row in content.items():
        speed, psnr = row["speed"], row["psnr"]
        exact = [v for step, v in psnr.items() if step in ("rewritten", "recalibrated")][-1]
        cells = [f"{asked}x", f"{row['macs']:.2f}"]
        for name, value in (
            ("int8", psnr["int8"]), ("in float32", exact), ("int8 alone", psnr["int8 alone"]),
        ):  # fmt: skip
            middle, low, high = speed[name]
            cells += [f"{middle:.2f} ({low:.2f}..{high:.2f})", f"{value:.2f}"]
        lines.append(f"| {' | '.join(cells)} | {psnr['original']:.2f} |")
    last = next(reversed(content.values()))
    about = last["environment"]
    lines.append(
        f"\n{about['cpu']}, {last['threads']} threads, torch {about['torch']}, onnxruntime "
        f"{about['onnxruntime']}, seed 0; {last['seconds']:.0f} s for the last row."
    )
    (HERE / "denoise.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
