"""Compress one CIFAR checkpoint as a config says; one report per run, results as JSON.

    python experiments/cifar10/run.py CHECKPOINT --data FOLDER [--config FILE] [--out FILE]

Runs that are in the results already are kept, so that a stopped experiment goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import factorize
from factorize.io.data import load_data
from factorize.io.models import load_model
from factorize.io.preprocessing import Preprocessing

HERE = Path(__file__).parent
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
    done = [(entry["run"], entry["arch"]) for entry in results]
    for run in config["runs"]:
        if (run, config["arch"]) in done:
            continue
        result = factorize.compress(
            loaded.model,
            torch.randn(1, *shape),
            data=data,
            seed=config["seed"],
            **run,
        )
        report = result.report.to_dict()
        entry = {"run": run, "arch": config["arch"], **{key: report[key] for key in KEPT}}
        results.append(entry)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        left = report["macs"]["compressed"] / report["macs"]["original"]
        top1 = {stage: round(values["top1"], 2) for stage, values in report["quality"].items()}
        print(f"{run} MACs left {left:.3f} {top1}", flush=True)


if __name__ == "__main__":
    main()
