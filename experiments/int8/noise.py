"""How much rounding a fit should reckon with: ResNet-20 of `cp` chains, in float and in int8.

    PYTHONPATH=. python experiments/int8/noise.py --data ../shared/data [--shares 0 0.003]
        [--macs 0.5]

The same ranks (0.7 of each kernel's energy), or a search within a share of the MACs, fitted to 400
images. A row for each share, in noise.json; the table is noise.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

import factorize
from factorize.measure.environment import environment

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "fit"))
IMAGES, HELD_OUT, OTHERS = 500, 100, 4000


def main() -> None:
    """Make the rows asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of trained nets")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.0, 1e-3, 3e-3, 1e-2])
    parser.add_argument("--macs", type=float, help="search within so many, in place of ranks")
    options = parser.parse_args()
    chains = "energy 0.7" if options.macs is None else f"{options.macs:g} of the MACs"
    path = HERE / "noise.json"
    for share in options.shares:
        content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        content[f"{chains}, {share:g}"] = row = _row(options.data, share, options.macs)
        content["environment"] = environment()
        print(share, row, flush=True)
        path.write_text(json.dumps(content, indent=1) + "\n")
        _write(content)


def _row(folder: Path, share: float, macs: float | None) -> dict[str, float]:
    from tasks import task

    net = task("resnet20", folder)
    images = net.calibration(IMAGES, 0)
    cut = [(b,) for b in images.split(HELD_OUT)]
    data = factorize.Data(cut[:-1], cut[-1:], labelled=False)
    others = net.calibration(OTHERS, 1)  # of another file than those that are fitted to
    wanted = _logs(net.model, others)

    def rated(model: nn.Module) -> dict[str, float]:
        apart = (wanted.exp() * (wanted - _logs(model, others))).sum(1)
        return {"top1": net.score(model), "divergence": float(apart.mean())}

    how: Any = {"energy": 0.7} if macs is None else {"budget": factorize.Budget(macs=macs)}
    with patch("factorize.run.compress.INT8", share):
        report = factorize.compress(
            net.model, images[:1], method="cp", data=data, int8=True, **how,
            evaluate=rated, latency=False, device="cpu",
        ).report  # fmt: skip
    steps = [values for name, values in report.quality.items() if not name.startswith("int8")]
    return {
        "float": steps[-1]["top1"],
        "int8": report.quality["int8"]["top1"],
        "kl float": steps[-1]["divergence"],
        "kl int8": report.quality["int8"]["divergence"],
    }


def _logs(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(batch).log_softmax(1) for batch in images.split(500)])


def _write(content: dict[str, Any]) -> None:
    about = content["environment"]
    lines = [
        "# What a fit reckons with\n",
        "    PYTHONPATH=. python experiments/int8/noise.py --data ../shared/data [--macs 0.5]\n",
        "Top-1 in percent on CIFAR-10's test images; KL from the original, by which the share is "
        "chosen, on 4,000 training images that nothing is fitted to.\n",
        "| chains, share of the mean square | float | int8 | KL float | KL int8 |",
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
