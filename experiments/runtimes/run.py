"""Searches for one target measured on the others, and for several at once, as a user runs them.

    PYTHONPATH=. python experiments/runtimes/run.py --data FOLDER [--only resnet18 ...]

Each row is one command in a process of its own: a search, or the plan of one carried out on another
target (`--plan`). Rows that are in results.json already are not run again; the plans are in plans/,
the tables in README.md.
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

from tables import write_tables

from factorize.measure.environment import environment, package_version

HERE = Path(__file__).parent
DENOISE = HERE.parent / "denoise" / "dncnn.py"
ONNX_RUNTIME, OPENVINO = "onnxruntime", "openvino"
SEARCHED = [[ONNX_RUNTIME], [OPENVINO], [ONNX_RUNTIME, OPENVINO]]
"""What is searched for: `--target`, and `--also`."""

NETS = ("resnet18", "vgg16_bn", "dncnn", "digits")
SPEEDUPS = {"digits": "1.2"}


def main() -> None:
    """Run what is missing of what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="with models/, denoise/")
    parser.add_argument("--only", nargs="+", choices=NETS, default=list(NETS[:3]))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    plans = options.out.parent / "plans"
    for net in options.only:
        for targets in SEARCHED:
            for measured in (None, ONNX_RUNTIME, OPENVINO):
                if measured in targets:  # the search itself tells
                    continue
                rows = json.loads(options.out.read_text()) if options.out.exists() else []
                key = {"net": net, "searched_for": targets, "measured_on": measured,
                       "threads": options.threads}  # fmt: skip
                if any(key.items() <= row.items() for row in rows):
                    continue
                plan = plans / f"{net}-{'-'.join(targets)}.json"
                row = {**key, **_run(key, plan, options.data.resolve())}
                print(row, flush=True)
                options.out.write_text(json.dumps([*rows, row], indent=1) + "\n")
                write_tables(HERE)


def _run(key: dict[str, Any], plan: Path, data: Path) -> dict[str, Any]:
    """A search, whose plan is kept, or a plan on another target."""
    first, *also = [key["measured_on"]] if key["measured_on"] else key["searched_for"]
    what = ["--speedup", SPEEDUPS.get(key["net"], "2")]
    if key["measured_on"]:
        if not plan.exists():
            return {"message": "no plan was found"}
        what = ["--plan", str(plan), "--fit", "weights"]
    denoise = {"DENOISE_TEST": data / "denoise" / "set12", "DENOISE_TRAIN": data / "denoise/train"}
    with tempfile.TemporaryDirectory() as folder:
        out, start = Path(folder, "out"), time.perf_counter()
        command = [
            *_net(key["net"], data, bool(key["measured_on"])), *what, "--target", first,
            *(word for one in also for word in ("--also", one)),
            "--threads", str(key["threads"]), "--finetune", "0", "--out", str(out),
        ]  # fmt: skip
        ran = subprocess.run(
            [sys.executable, "-m", "factorize", *command],
            env={**os.environ, **{name: str(path) for name, path in denoise.items()}},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        found = {
            "exit_code": ran.returncode, "seconds": round(time.perf_counter() - start, 1),
            "load": os.getloadavg()[0],
            "environment": {**environment(), "openvino": package_version("openvino")},
        }  # fmt: skip
        if not (out / "report.json").exists():
            return {**found, "message": ran.stdout.strip()[-500:]}
        report = json.loads((out / "report.json").read_text())
        if not key["measured_on"]:
            plan.parent.mkdir(exist_ok=True)
            plan.write_bytes((out / "plan.json").read_bytes())
    return {**found, **_found(report, [first, *also])}


def _found(report: dict[str, Any], targets: list[str]) -> dict[str, Any]:
    replaced = [layer for layer in report["layers"] if layer["method"]]
    layers: dict[str, list[float]] = {targets[0]: [], **{name: [] for name in targets[1:]}}
    for layer in replaced:
        others = layer["elsewhere"].values()
        for name, times in zip(targets, [layer, *others], strict=False):
            if times.get("ms"):
                layers[name].append(times["ms_original"] / times["ms"])
    methods: dict[str, int] = {}
    for layer in replaced:
        methods[layer["method"]] = methods.get(layer["method"], 0) + 1
    search = report["search"] or {}
    return {
        "speed": {
            name: [one[k] for k in ("speedup", "speedup_p10", "speedup_p90")]
            + [one["original"]["median_ms"]]
            for name, one in zip(targets, report["speed"], strict=False)
        },
        "prediction_error": report["derived"]["prediction_error"].get("compressed"),
        "layers": methods,
        "least_layer_speedup": {name: min(found, default=None) for name, found in layers.items()},
        "slower_layers": {name: sum(one < 1 for one in found) for name, found in layers.items()},
        "quality": report["quality"],
        "likes": search.get("likes", []),
        "failures": report["failures"],
        "remarks": [one for one in report["notes"] if "model.onnx" in one],
    }


def _net(net: str, data: Path, planned: bool) -> list[str]:
    if net == "digits":
        return [net]
    if net == "dncnn":
        return [
            str(data / "models" / "dncnn-s15.pth"), "--arch", f"{DENOISE}:dncnn",
            "--input-shape", "1,256,256", "--evaluate", f"{DENOISE}:psnr",
            "--data", f"{DENOISE}:noisy_crops",
        ]  # fmt: skip
    # Random weights, whose times alone are asked for: the chains need no images.
    return [f"torchvision:{net}", *([] if planned else ["--fit", "weights"])]


if __name__ == "__main__":
    main()
