"""What less work costs a fit: rough and quick ones beside whole ones, and fewer patches.

    PYTHONPATH=. python experiments/search/fits.py --data FOLDER

ResNet-20, chains of a share of the maximal rank; the distance from the original is the KL
divergence on 3,000 training images that no fit sees. Writes fits.json and the tables of README.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tables import write

import factorize
from factorize import calibrate, graph, methods
from factorize.fit import FitConfig, apply_, fit
from factorize.measure.environment import environment
from factorize.tensor.effort import Effort, with_effort
from factorize.tensor.moments import shrinkage, target_and_norm
from factorize.types import Data, LayerPlan

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "fit"))

from tasks import Task, task  # noqa: E402

SEEDS = (0, 1, 2)
RANKS = (0.2, 0.12)
PATCHES = ((40_000, 64), (20_000, 32), (10_000, 16))
LAYERS = ("layer1.1.conv1", "layer2.1.conv2", "layer3.1.conv1")


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    chosen = task("resnet20", options.data)
    content: dict[str, Any] = {
        "environment": environment(),
        "threads": torch.get_num_threads(),
        "errors": list(_errors(chosen)),
        "nets": [],
    }
    for row in _nets(chosen):
        content["nets"].append(row)
        (HERE / "fits.json").write_text(json.dumps(content, indent=1) + "\n")
        write()


def _errors(chosen: Task) -> Iterator[dict[str, Any]]:
    """Squared errors of each method by effort, at 0.3 and 0.6 of a layer's MACs."""
    images = chosen.calibration(1000, 0)
    sites = graph.find(chosen.model, images[:1])
    specs = {site.spec.name: site.spec for site in sites if site.spec.name in LAYERS}
    moments = calibrate.collect(chosen.model, specs, list(images.split(chosen.batch)))
    for name, spec in specs.items():
        of_layer = moments.layers[name]
        weight = graph.effective_weight(chosen.model.get_submodule(name)).double()
        target, norm = target_and_norm(of_layer.fit, weight, shrinkage(of_layer))
        for method in map(methods.get, methods.names()):
            ladder = method.ladder(spec, step=8, count=1000) if method.searched else ()
            for share in (0.3, 0.6) if ladder else ():

                def left(rank: Any, method: Any = method, spec: Any = spec) -> float:
                    stages = method.stages(spec, rank, method.variants[0])
                    return sum(stage.macs for stage in stages) / spec.macs

                rank = min(ladder, key=lambda r: abs(left(r) - share))
                row: dict[str, Any] = {"layer": name, "method": method.name, "share": left(rank)}
                plan = LayerPlan(spec, method.name, rank, method.variants[0])
                for effort in Effort:
                    start = time.perf_counter()
                    with with_effort(effort):
                        made = methods.factorize(plan, target, norm=norm, seed=0)
                    row[effort.name] = [made.error**2, time.perf_counter() - start]
                yield row


def _nets(chosen: Task) -> Iterator[dict[str, Any]]:
    """Nets fitted in sequence, whole, to fewer and fewer patches, and quickly."""
    module = sys.modules["factorize.calibrate.collect"]
    unseen = chosen.calibration(3000, 4)
    with torch.inference_mode():
        wanted = _log_probabilities(chosen.model, unseen)
    ways = [(Effort.WHOLE, *patches) for patches in PATCHES] + [(Effort.QUICK, *PATCHES[0])]
    for seed in SEEDS:
        images = chosen.calibration(1000, seed)
        batches = [(batch,) for batch in images.split(chosen.batch)]
        data = Data(batches, batches, None, False, None, "training images")
        for rank in RANKS:
            plan = factorize.make_plan(chosen.model, images[:1], method="cp", rank=rank)
            for effort, patches, each in ways:
                module.PATCHES, module.PATCHES_PER_ENTRY = patches, each  # type: ignore[attr-defined]
                start = time.perf_counter()
                with with_effort(effort):
                    fitted = fit(chosen.model, plan, FitConfig(), data=data, seed=seed)
                seconds = time.perf_counter() - start
                net = apply_(copy.deepcopy(chosen.model), fitted)
                with torch.inference_mode():
                    found = _log_probabilities(net, unseen)
                kl = float(((wanted - found) * wanted.exp()).sum(1).mean())
                row = {
                    "seed": seed, "rank": rank, "effort": effort.name, "patches": patches,
                    "kl": kl, "seconds": seconds,
                }  # fmt: skip
                print(row, flush=True)
                yield row


def _log_probabilities(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([model(batch) for batch in images.split(250)]).log_softmax(1)


if __name__ == "__main__":
    main()
