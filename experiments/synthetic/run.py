"""Chains fitted to made-up images, beside real ones and the weights alone.

    PYTHONPATH=. python experiments/synthetic/run.py --data ../shared/data [--only digits]

The built-in digits at rank 8, and ResNet-20 on CIFAR-10 with `cp` at shares of its MACs: top-1 on
test images, which nothing was fitted to. The range of the made-up images is read off the first
batch norm. Writes results.json and the table of README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

import factorize
from factorize.data.digits import digits_data
from factorize.measure import accuracy
from factorize.measure.environment import environment
from factorize.models.digits import load_digits_model

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "fit"))
SHARES = (0.5, 0.3)
MARK = "<!-- made by run.py: do not edit below -->"


def main() -> None:
    """Run what is asked for; rows of before stay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="the folder with cifar10/ and models/")
    parser.add_argument("--only", choices=("digits", "resnet20"))
    options = parser.parse_args()
    path = HERE / "results.json"
    rows: dict[str, Any] = json.loads(path.read_text())["rows"] if path.exists() else {}
    for name, run in (("digits", digits), ("resnet20", resnet20)):
        if options.only in (None, name):
            for found in run(options.data):
                rows[f"{found['net']}, {found['chains']}"] = found
                print(found, flush=True)
                content = {"environment": environment(), "rows": rows}
                path.write_text(json.dumps(content, indent=1, default=str) + "\n")
                table(content)


def digits(_: Path | None) -> Any:
    """One row."""
    net, test = load_digits_model(), digits_data().test
    assert test is not None
    top1 = {"original": accuracy(net, test)["top1"]}
    for name, data in (("real", "digits"), ("made up", "synthetic"), ("weights", None)):
        made = compressed(net, (1, 8, 8), data=data, rank=8)
        top1[name] = accuracy(made, test)["top1"]
    yield {"net": "digits", "chains": "spatial_svd, rank 8", "top1": top1}


def resnet20(folder: Path | None) -> Any:
    """One row for each share."""
    from tasks import task

    if folder is None:
        raise SystemExit("--data: ResNet-20 and CIFAR-10 are needed, got none. Give their folder.")
    this = task("resnet20", folder)
    images = this.calibration(1250, 0)
    real = factorize.Data(
        [(b,) for b in images[:1000].split(100)], [(b,) for b in images[1000:].split(125)],
        labelled=False,
    )  # fmt: skip
    for share in SHARES:
        top1 = {"original": this.score(this.model)}
        for name, data in (("real", real), ("made up", "synthetic"), ("weights", None)):
            budget = factorize.Budget(macs=share)
            made = compressed(this.model, (3, 32, 32), data=data, budget=budget, method="cp")
            top1[name] = this.score(made)
        yield {"net": "ResNet-20", "chains": f"cp, {share:g} of the MACs", "top1": top1}


def compressed(net: Any, shape: tuple[int, ...], **how: Any) -> Any:
    """The compressed net; nothing is tuned."""
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    return factorize.compress(net, x, latency=False, device="cpu", **how).model


def table(content: dict[str, Any]) -> None:
    """Below the mark in README.md."""
    machine = content["environment"]
    columns = ("original", "real", "made up", "weights")
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}, seed 0; top-1 in "
        "percent on test images, no batch norm recalibrated on made-up ones, nothing tuned.",
        "",
        f"| net, chains | {' | '.join(columns)} |",
        f"| --- |{' --- |' * len(columns)}",
    ]
    for name, row in content["rows"].items():
        cells = " | ".join(f"{row['top1'][column]:.2f}" for column in columns)
        lines.append(f"| {name} | {cells} |")
    page = (HERE / "README.md").read_text().partition(MARK)[0]
    (HERE / "README.md").write_text("\n".join([page.rstrip(), "", MARK, "", *lines, ""]))


if __name__ == "__main__":
    main()
