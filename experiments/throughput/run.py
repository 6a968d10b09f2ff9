"""Images per second of fine-tuning, against a loop written by hand: bouts of both in turns.

    PYTHONPATH=. python experiments/throughput/run.py --net resnet20 --device cuda

Adds a row to results.json, in place of an earlier one of the same settings and machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from bare import LABEL_WEIGHT, LR, MAX_NORM, TEMPERATURE, WEIGHT_DECAY, BareLoop
from torch import nn

import factorize
from experiments.cifar10.resnet import resnet20
from factorize.data.images import Loading, PixelSet, Transform, build
from factorize.measure.environment import environment
from factorize.run.checks import resolve_device
from factorize.types import Data, Preprocessing

HERE = Path(__file__).parent
NETS: dict[str, dict[str, Any]] = {
    "resnet20": {"make": resnet20, "classes": 10, "side": 32, "batch": 512, "crop": 4},
    "resnet50": {"make": torchvision.models.resnet50, "classes": 1000, "side": 224, "batch": 64,
                 "crop": 0},
}  # fmt: skip
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FEWEST = 32  # batches: of fewer, the library makes smaller ones


class Turns:
    """Called by the library after each of its steps; after each bout of them the bare loop's turn.

    Each bout is timed from an idle device to an idle device. The first one of each warms up.
    """

    def __init__(self, bare: BareLoop, steps: int, bouts: int, device: str) -> None:
        self.bare, self.steps, self.bouts, self.device = bare, steps, bouts, device
        self.tool_seconds: list[float] = []
        self.bare_seconds: list[float] = []
        self.begun: float | None = None

    def __call__(self, stage: str, done: int, total: int, values: dict[str, float]) -> None:
        if done % self.steps or len(self.bare_seconds) > self.bouts:
            return
        ended = self._clock()
        if self.begun is not None:
            self.tool_seconds.append(ended - self.begun)
        for _ in range(self.steps):
            self.bare.step()
        self.begun = self._clock()
        self.bare_seconds.append(self.begun - ended)

    def _clock(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def main() -> None:
    """Read the arguments, time, write the row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=NETS, default="resnet20")
    parser.add_argument("--batch", type=int, help="default: 512 for resnet20, 64 for resnet50")
    parser.add_argument("--steps", type=int, default=30, help="of a bout")
    parser.add_argument("--bouts", type=int, default=10, help="of each, after one to warm up")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    options.device = resolve_device(options.device)
    options.batch = options.batch or NETS[options.net]["batch"]
    row = run(options)
    print(json.dumps({k: v for k, v in row.items() if k != "environment"}))
    rows = json.loads(options.out.read_text()) if options.out.exists() else []
    key = ("net", "batch", "precision", "channels_last", "machine", "threads")
    rows = [old for old in rows if any(old[name] != row[name] for name in key)]
    options.out.write_text(json.dumps([*rows, row], indent=1) + "\n")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Time one net in one setting."""
    net, steps, device = NETS[options.net], options.steps, options.device
    total = max(steps * (options.bouts + 1), FEWEST)
    teacher, student = pair(net)
    dataset = images(net, total * options.batch + options.batch)
    data = splits(dataset, options.batch, net["classes"])
    bfloat16 = options.precision == "bfloat16"
    bare = BareLoop(
        copy.deepcopy(student), copy.deepcopy(teacher), dataset.pixels, dataset.labels,
        mean=MEAN, std=STD, batch=options.batch, crop=net["crop"], bfloat16=bfloat16,
        channels_last=options.channels_last, steps=total, device=device,
    )  # fmt: skip
    config = factorize.FinetuneConfig(
        1, lr=LR, weight_decay=WEIGHT_DECAY, max_grad_norm=MAX_NORM, temperature=TEMPERATURE,
        label_weight=LABEL_WEIGHT, flip=True, crop=net["crop"], precision=options.precision,
        channels_last=options.channels_last,
    )  # fmt: skip
    turns = Turns(bare, steps, options.bouts, device)
    told = factorize.finetune(student, teacher, data, config, device=device, progress=turns)
    seconds = np.array([turns.tool_seconds, turns.bare_seconds[1:]])
    tool, hand = steps * options.batch / seconds
    machine = environment()
    return {
        "net": options.net, "batch": options.batch, "precision": options.precision,
        "channels_last": options.channels_last, "steps": steps, "bouts": seconds.shape[1],
        "tool": spread(tool), "bare": spread(hand), "ratio": spread(tool / hand),
        "tool_says": told.images_per_second, "mixed_precision": told.mixed_precision,
        "machine": machine["cuda_device"] if device == "cuda" else machine["cpu"],
        "threads": torch.get_num_threads(), "load": os.getloadavg()[0], "environment": machine,
    }  # fmt: skip


def pair(net: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """A net with random weights, and the same with its 3x3 convolutions in two of half the rank."""
    torch.manual_seed(0)
    teacher = net["make"]().eval()
    plan = factorize.make_plan(teacher, torch.randn(1, 3, net["side"], net["side"]), rank=0.5)
    return teacher, factorize.rewrite(teacher, plan)


def images(net: dict[str, Any], count: int) -> PixelSet:
    """Random pixels and labels in memory, as the library holds those of a dataset."""
    draw, side = torch.Generator().manual_seed(0), net["side"]
    pixels = torch.randint(256, (count, 3, side, side), generator=draw, dtype=torch.uint8)
    labels = torch.randint(net["classes"], (count,), generator=draw)
    ready = Transform.of(Preprocessing(MEAN, STD), (3, side, side))
    return PixelSet(pixels, labels, lambda some: ready(some, "random images"))


def splits(dataset: PixelSet, batch: int, classes: int) -> Data:
    """One batch is held out; the rest is one epoch."""
    return build(
        dataset, None, Loading(batch_size=batch, holdout=batch), classes=classes,
        source="random images",
    )  # fmt: skip


def spread(values: np.ndarray) -> list[float]:
    """Median, 10th and 90th percentile."""
    return [float(value) for value in np.percentile(values, (50, 10, 90))]


if __name__ == "__main__":
    main()
