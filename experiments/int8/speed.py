"""int8 and factorization: time in ONNX Runtime, by the product's own timing. Weights do not matter.

    PYTHONPATH=. python experiments/int8/speed.py [--only resnet18 ...] [--threads 2] [--again]

Each net with all of its layers replaced by chains of one method, at half and at a third of its MACs
(the same share of the largest rank everywhere, on steps of 16), in float32 and in int8, beside the
float original and beside the original in int8. And four equal 3x3 layers by themselves. Nothing is
fitted, and nothing that is slower is left out: this is what a search chooses from. On an idle
machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tables import write_speed
from torch import nn

import factorize
from factorize import methods
from factorize.measure import Target
from factorize.measure.environment import environment
from factorize.search.assembled import Assembled
from factorize.spec import ConvSpec
from factorize.types import LayerPlan

HERE = Path(__file__).parent
METHODS = ("spatial_svd", "tucker2", "cp", "channel_svd")
SHARES = (0.5, 1 / 3)
STEP = 16
LAYERS = {"64 @ 56": (64, 56), "128 @ 28": (128, 28), "256 @ 14": (256, 14), "512 @ 7": (512, 7)}
SIDES = {"dncnn": 256, "resnet18": 224, "resnet50": 224, "vgg16_bn": 224}


def main() -> None:
    """Make the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [*LAYERS, *SIDES]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = HERE / "speed.json"
    for name in options.only:
        content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        if name in content and not options.again:
            continue
        row = _row(name, options.threads)
        print(name, row, flush=True)
        content[name] = {**row, "threads": options.threads, "environment": environment()}
        path.write_text(json.dumps(content, indent=1) + "\n")
        write_speed(HERE / "README.md", content)


def _row(name: str, threads: int) -> dict[str, Any]:
    net, x = _net(name)
    timers = {
        dtype: Assembled(net, x, Target("onnxruntime", threads, dtype=dtype))
        for dtype in ("float32", "int8")
    }
    row: dict[str, Any] = {"int8": timers["int8"].gained, "chains": {}}
    for share in SHARES:
        for method in METHODS:
            plan, macs = _within(net, x, method, share)
            if not plan:
                continue
            row["chains"][f"{method}, {share:.2f}"] = {
                "macs": macs,
                **{
                    dtype: [found.speedup, found.speedup_p10, found.speedup_p90]
                    for dtype, timer in timers.items()
                    if (found := timer.speedup(plan))
                },
            }
    return row


def _net(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if name in LAYERS:
        channels, side = LAYERS[name]
        layers = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4)]
        return nn.Sequential(*layers).eval(), torch.randn(1, channels, side, side)
    if name == "dncnn":
        import sys

        sys.path.append(str(HERE.parent / "denoise"))
        from dncnn import dncnn

        return dncnn().eval(), torch.randn(1, 1, SIDES[name], SIDES[name])
    from torchvision import models

    return getattr(models, name)().eval(), torch.randn(1, 3, SIDES[name], SIDES[name])


def _within(
    net: nn.Module, x: torch.Tensor, method: str, share: float
) -> tuple[list[LayerPlan], float]:
    """Chains at the largest share of all ranks that keeps to so many of the MACs."""
    sites = [site.spec for site in factorize.find(net, x)]
    whole = sum(spec.macs for spec in sites)
    low, high = 0.0, 1.0
    best: tuple[list[LayerPlan], float] = [], 1.0
    for _ in range(12):
        middle = (low + high) / 2
        chains = [_chain(spec, method, middle) for spec in sites if _replaced(spec)]
        macs = 1 - sum(one.spec.macs - one.macs for one in chains) / whole
        if macs <= share:
            low, best = middle, (chains, macs)
        else:
            high = middle
    return best


def _replaced(spec: ConvSpec) -> bool:
    """All convolutions but those that read the image or give it."""
    return bool(spec.kernel) and min(spec.in_channels, spec.out_channels) > STEP


def _chain(spec: ConvSpec, name: str, share: float) -> LayerPlan:
    """Ranks on the hardware's step; a 1x1 convolution has one kind of chain."""
    name = name if max(spec.kernel) > 1 else "channel_svd"
    method = methods.get(name)
    most = method.max_rank(spec)
    rank = tuple(min(max(STEP * round(share * r / STEP), STEP), r) for r in most)
    macs = sum(stage.macs for stage in method.stages(spec, rank, method.variants[0]))
    return LayerPlan(spec, name, rank, method.variants[0], macs)


if __name__ == "__main__":
    main()
