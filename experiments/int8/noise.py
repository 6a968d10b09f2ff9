"""How much rounding a fit should reckon with: ResNet-20 of `cp` chains, in float and in int8.

    PYTHONPATH=. python experiments/int8/noise.py --data ../shared/data [--shares 0 0.003]

The same ranks (0.7 of each kernel's energy), fitted to 400 images. A row for each share, in
noise.json; the table is noise.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import factorize
from factorize.measure.environment import environment

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "fit"))
IMAGES, HELD_OUT = 500, 100


def main() -> None:
    """Make the rows asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of trained nets")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.0, 1e-3, 3e-3, 1e-2])
    options = parser.parse_args()
    path = HERE / "noise.json"
    for share in options.shares:
        content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        content[f"{share:g}"] = row = _row(options.data, share)
        content["environment"] = environment()
        print(share, row, flush=True)
        path.write_text(json.dumps(content, indent=1) + "\n")
        _write(content)


def _row(folder: Path, share: float) -> dict[str, float]:
    from tasks import task

    net = task("resnet20", folder)
    images = net.calibration(IMAGES, 0)
    cut = [(b,) for b in images.split(HELD_OUT)]
    data = factorize.Data(cut[:-1], cut[-1:], labelled=False)
    with patch("factorize.run.compress.INT8", share):
        report = factorize.compress(
            net.model, images[:1], method="cp", energy=0.7, data=data, int8=True,
            evaluate=net.score, latency=False, device="cpu",
        ).report  # fmt: skip
    steps = [values for name, values in report.quality.items() if not name.startswith("int8")]
    return {
        "float": steps[-1]["score"],
        "int8": report.quality["int8"]["score"],
        "kl float": steps[-1]["kl"],
        "kl int8": report.quality["int8"]["kl"],
    }


def _write(content: dict[str, Any]) -> None:
    about = content["environment"]
    lines = [
        "# What a fit reckons with\n",
        "    PYTHONPATH=. python experiments/int8/noise.py --data ../shared/data\n",
        "Top-1 in percent on CIFAR-10's test images; KL from the original on 100 held-out training "
        "images.\n",
        "| share of the mean square | float | int8 | KL float | KL int8 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for share, row in content.items():
        if share != "environment":
            lines.append(
                f"| {share} | {row['float']:.2f} | {row['int8']:.2f} | {row['kl float']:.4f} | "
                f"{row['kl int8']:.4f} |"
            )
    lines.append(f"\n{about['cpu']}, torch {about['torch']}, seed 0.")
    (HERE / "noise.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
