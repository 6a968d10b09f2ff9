"""Time delivered ONNX files beside their original again, to see how far times drift.

    python experiments/speed/again.py original.onnx A/model.onnx ... --input-shape 1,256,256

Each is timed several times, in turn. Writes again.json, prints its rows.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

import torch

from factorize.measure import Target, speedup
from factorize.measure.environment import environment

HERE = Path(__file__).parent


def main() -> None:
    """Read the arguments, time, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("original", type=Path)
    parser.add_argument("compressed", type=Path, nargs="+")
    parser.add_argument("--input-shape", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "again.json")
    options = parser.parse_args()
    x = torch.rand(1, *map(int, options.input_shape.split(",")))
    target, rows = Target("onnxruntime", threads=options.threads), []
    for _ in range(options.times):
        for file in options.compressed:
            found = speedup(target, options.original, file, x)
            row = {"net": file.parent.name, "pairs": found.runs, "speedup": found.speedup,
                   "p10": found.speedup_p10, "p90": found.speedup_p90,
                   "original_ms": found.original.median_ms,
                   "at": datetime.now(UTC).isoformat(timespec="seconds")}  # fmt: skip
            rows.append(row)
            print(row, flush=True)
    written = {"rows": rows, "environment": environment()}
    options.out.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
