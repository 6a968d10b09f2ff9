"""Compress one CIFAR checkpoint as a config says; one report per run, results as JSON.

    python experiments/cifar10/weights/run.py CHECKPOINT --data FOLDER [--config FILE] [--out FILE]

Runs that are in the results already are kept, so that a stopped experiment goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import factorize
from factorize.data.load_data import load_data
from factorize.models.load_model import load_model
from factorize.types import Preprocessing

HERE = Path(__file__).parent
HEAD = """\
| method | rank | MACs left | params left | original | rewritten | recalibrated | tuned | speedup |
|---|---|---|---|---|---|---|---|---|"""
KEPT = ("settings", "environment", "params", "macs", "quality", "speed", "seconds", "notes")


def main() -> None:
    """Read the arguments, do the runs that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--data", required=True, help="folder with train*.npz and test.npz")
    parser.add_argument("--config", type=Path, default=HERE / "config.json")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    options = parser.parse_args()

    config = json.loads(options.config.read_text())
    loaded = load_model(options.checkpoint, arch=config["arch"])
    shape = tuple(config["input_shape"])
    data = load_data(
        options.data,
        preprocessing=Preprocessing(tuple(config["mean"]), tuple(config["std"])),
        input_shape=shape,
        seed=config["seed"],
    )
    results = json.loads(options.out.read_text()) if options.out.exists() else []
    same = {"checkpoint": Path(options.checkpoint).name, "arch": config["arch"]}
    same["seed"] = config["seed"]
    done = [{key: entry[key] for key in ("run", *same)} for entry in results]
    for run in config["runs"]:
        if {"run": run, **same} in done:
            continue
        result = factorize.compress(
            loaded.model,
            torch.randn(1, *shape),
            data=data,
            seed=config["seed"],
            fit=factorize.FitConfig("weights"),
            **run,
        )
        report = result.report.to_dict()
        entry = {"run": run, **same, **{key: report[key] for key in KEPT}}
        results.append(entry)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        print(row(entry), flush=True)
    print(f"\n{HEAD}\n" + "\n".join(row(entry) for entry in results))


def row(entry: dict[str, Any]) -> str:
    """One line of the README's table."""
    run, quality = entry["run"], entry["quality"]
    cells = [run["method"], str(run["rank"]), f"{left(entry['macs']):.3f}"]
    cells += [f"{left(entry['params']):.3f}"]
    for stage in ("original", "rewritten", "recalibrated", "finetuned"):
        cells.append(f"{quality[stage]['top1']:.2f}" if stage in quality else "")
    speed = next((one for one in entry["speed"] if one["runtime"] == "onnxruntime"), None)
    spread = "{speedup:.2f} ({speedup_p10:.2f}-{speedup_p90:.2f})"
    return "| " + " | ".join([*cells, spread.format(**speed) if speed else ""]) + " |"


def left(pair: dict[str, int]) -> float:
    """Compressed over original."""
    return pair["compressed"] / pair["original"]


if __name__ == "__main__":
    main()
