"""Time the nets of a config beside their original.

    python experiments/cifar10/weights/times.py CHECKPOINT [--config FILE] [--out FILE]

How fast they are does not depend on their weights: no data are needed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import factorize
from factorize.models.load_model import load_model

HERE = Path(__file__).parent


def main() -> None:
    """Rewrite and time each, write all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--config", type=Path, default=HERE / "config.json")
    parser.add_argument("--out", type=Path, default=HERE / "times.json")
    options = parser.parse_args()
    config = json.loads(options.config.read_text())
    model = load_model(options.checkpoint, arch=config["arch"]).model
    results = []
    for run in config["runs"]:
        rule = {key: value for key, value in run.items() if key != "finetune"}
        result = factorize.compress(
            model, torch.randn(1, *config["input_shape"]), seed=config["seed"], **rule
        )
        report = result.report.to_dict()
        results.append({"run": rule, **{key: report[key] for key in ("environment", "speed")}})
        for one in report["speed"]:
            spread = f"({one['speedup_p10']:.2f}-{one['speedup_p90']:.2f})"
            cells = rule["method"], rule["rank"], one["runtime"], f"{one['speedup']:.2f} {spread}"
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
