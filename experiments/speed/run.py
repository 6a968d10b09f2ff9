"""Searches by measured time on torchvision's nets, as a user runs them; random weights.

    python experiments/speed/run.py resnet18,vgg16_bn,resnet50 --speedups 1.5,2,3

Each run is the command `factorize torchvision:NET --speedup S` in a process of its own. The first
of a net has an empty cache of timings. Rows are added to results.json; what is there already is
not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def main() -> None:
    """Read the arguments, do the runs that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nets")
    parser.add_argument("--speedups", default="1.5,2,3")
    parser.add_argument("--methods", default="auto", help="separated by ;")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    rows = json.loads(options.out.read_text()) if options.out.exists() else []
    for net in options.nets.split(","):
        with tempfile.TemporaryDirectory() as cache:
            for method in options.methods.split(";"):
                for speedup in map(float, options.speedups.split(",")):
                    key = {"net": net, "speedup": speedup, "method": method,
                           "threads": options.threads}  # fmt: skip
                    if not any(key.items() <= row.items() for row in rows):
                        cold = not any(Path(cache).iterdir())
                        rows.append({**key, "empty_cache": cold, **_run(key, cache)})
                        options.out.write_text(json.dumps(rows, indent=1) + "\n")
                        print(rows[-1], flush=True)


def _run(key: dict[str, Any], cache: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        command = [
            "-m", "factorize", f"torchvision:{key['net']}", "--speedup", str(key["speedup"]),
            "--method", key["method"], "--target", "onnxruntime",
            "--threads", str(key["threads"]), "--out", str(out),
        ]  # fmt: skip
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command], env={**os.environ, "FACTORIZE_CACHE": cache},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds, code = time.perf_counter() - start, os.waitstatus_to_exitcode(status)
        found = {"exit_code": code, "seconds": round(seconds, 1),
                 "peak_gb": round(usage.ru_maxrss / 1e6, 2)}  # fmt: skip
        if not (out / "report.json").exists():
            return {**found, "message": text.strip().splitlines()[-1]}
        report = json.loads((out / "report.json").read_text())
    speed, search = report["search"]["measured"], report["search"]
    macs = report["macs"]
    replaced = [layer for layer in report["layers"] if layer["method"]]
    methods: dict[str, int] = {}
    for layer in replaced:
        methods[layer["method"]] = methods.get(layer["method"], 0) + 1
    return {
        **found,
        "measured": [speed["speedup"], speed["speedup_p10"], speed["speedup_p90"]],
        "original_ms": speed["original"]["median_ms"],
        "predicted": search["predicted_ms"]["original"] / search["predicted_ms"]["compressed"],
        "macs_ratio": macs["original"] / macs["compressed"],
        "params_ratio": report["params"]["original"] / report["params"]["compressed"],
        "layers": methods,
        "slower_layers": sum(layer["ms"] > layer["ms_original"] for layer in replaced),
        "chains_timed": search["chains_timed"],
        "stage_seconds": report["seconds"],
        "environment": report["environment"],
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
