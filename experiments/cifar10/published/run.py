"""Compress and tune the nets of the table, beside the dense originals tuned alike.

    PYTHONPATH=. python experiments/cifar10/published/run.py --data FOLDER --recipe RECIPE

FOLDER holds cifar10/ and models/; the plans are those of plans.py. All training images but 1,000
that are held out to choose the epoch; top-1 on the test file. Rows are added to results.json; what
is there already is not run again, and a run that was stopped goes on from its checkpoint in --work.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from plans import HERE, plan_path
from torch.utils.data import DataLoader, Subset

import factorize
from factorize import graph
from factorize.data.images import Shuffled
from factorize.data.load_data import load_data
from factorize.measure.environment import environment
from factorize.models.load_model import load_model
from factorize.plan import load_plan
from factorize.run.checks import resolve_device
from factorize.run.jobs import control, control_checkpoint
from factorize.tune import read_recipe, with_recipe
from factorize.types import Data, Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESULTS = HERE / "results.json"


def main() -> None:
    """Read the arguments, do the runs that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=HERE / "full.toml")
    parser.add_argument("--net", choices=("resnet20", "resnet56"), action="append")
    parser.add_argument(
        "--only", default="*", help="a glob on METHOD-SHARE; dense-1 is the control"
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--images", type=int, help="train on so many only")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("cifar10-work"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    config = json.loads((HERE / "config.json").read_text())
    options.work.mkdir(exist_ok=True)
    for seed in map(int, options.seeds.split(",")):
        for net, given in config["nets"].items():
            if options.net is None or net in options.net:
                wanted: list[tuple[str, float]] = [
                    (method, row["macs"])
                    for row in config["rows"]
                    if row["net"] == net
                    for method in row["methods"]
                ]
                _run(net, given, [("dense", 1.0), *wanted], seed, options)


def _run(
    net: str, given: dict[str, str], wanted: list[tuple[str, float]], seed: int,
    options: argparse.Namespace,
) -> None:  # fmt: skip
    model, data = nets_data(options.data, given, seed)
    if options.images:
        data = fewer(data, options.images, seed)
    device = resolve_device(options.device)
    chosen = [one for one in wanted if fnmatchcase(f"{one[0]}-{one[1]:g}", options.only)]
    for method, macs in chosen:
        key = {"net": net, "method": method, "macs_wanted": macs, "seed": seed,
               "recipe": options.recipe.name, "images": options.images}  # fmt: skip
        if any(key.items() <= row.items() for row in rows(options.out)):
            continue
        checkpoint = options.work / f"{options.recipe.stem}-{net}-{method}-{macs:g}-{seed}.ckpt"
        tuning = with_recipe(read_recipe(options.recipe), seed=seed, control=False)
        tuning = replace(tuning, checkpoint=checkpoint)
        done = control_checkpoint(tuning) if method == "dense" else checkpoint
        tuning = replace(tuning, resume=done.exists())
        start = time.perf_counter()
        found = _tuned(model, data, method, macs, net, tuning, seed, device)
        row = {**key, **found, "seconds": time.perf_counter() - start,
               "threads": torch.get_num_threads(), "environment": environment()}  # fmt: skip
        options.out.write_text(json.dumps([*rows(options.out), row], indent=1) + "\n")
        for one in (checkpoint, control_checkpoint(tuning)):
            one.unlink(missing_ok=True)
        print({k: row[k] for k in ("net", "method", "macs", "quality", "seconds")}, flush=True)


def _tuned(
    model: Any, data: Data, method: str, macs: float, net: str, tuning: Any, seed: int, device: str
) -> dict[str, Any]:
    """One run: top-1 by stage, what is left, how the tuning went.

    Of the tuned epochs the best on held-out images is taken, for the control and the compressed
    net alike. The start is no choice, as it is for the command: the original was trained on the
    held-out images too, which favours it.
    """
    example = torch.randn(1, 3, 32, 32)
    if method == "dense":
        rated = factorize.measure_quality(model, model, example, data=data, device=device)
        tuned, result = control(model, data, tuning, device=device, progress=shown)
        after = factorize.measure_quality(model, tuned, example, data=data, device=device)
        return {
            "macs": 1.0, "params": 1.0, "methods": {},
            "quality": {"original": rated["top1"], "finetuned": after["top1"]},
            "tuning": _of(vars(result)),
        }  # fmt: skip
    made = factorize.compress(
        model, example, plan=load_plan(plan_path(net, method, macs)), data=data, latency=False,
        device=device, seed=seed, progress=shown,
    )  # fmt: skip
    tuned, report = graph.balance_(made.model, made.plan), made.report
    result = factorize.finetune(
        tuned, model, data, replace(tuning, may_stay=False), device=device, progress=shown
    )
    after = factorize.measure_quality(model, tuned, example, data=data, device=device)
    used: dict[str, int] = {}
    for layer in made.plan.factorized:
        used[str(layer.method)] = used.get(str(layer.method), 0) + 1
    quality = {stage: values["top1"] for stage, values in report.quality.items()}
    return {
        "macs": report.macs["compressed"] / report.macs["original"],
        "params": report.params["compressed"] / report.params["original"],
        "methods": used, "quality": {**quality, "finetuned": after["top1"]},
        "tuning": _of(vars(result)),
    }  # fmt: skip


def _of(tuning: dict[str, Any]) -> dict[str, Any]:
    kept = ("epochs_done", "best_epoch", "steps", "seconds", "images_per_second", "device",
            "mixed_precision", "history")  # fmt: skip
    return {name: tuning[name] for name in kept}


def nets_data(folder: Path, given: dict[str, str], seed: int) -> tuple[Any, Data]:
    """A trained net of config.json, and the images that it is tuned and tested on."""
    model = load_model(str(folder / "models" / given["checkpoint"]), arch=given["arch"]).model
    data = load_data(
        folder / "cifar10", preprocessing=Preprocessing(MEAN, STD), seed=seed,
        input_shape=(3, 32, 32),
    )  # fmt: skip
    return model, data


def fewer(data: Data, images: int, seed: int) -> Data:
    """The first images of the training split alone."""
    train = data.train
    kept = Subset(train.dataset.dataset, train.dataset.indices[:images])
    size = train.batch_size
    loader = DataLoader(kept, size, sampler=Shuffled(images, seed), collate_fn=train.collate_fn,
                        drop_last=True)  # fmt: skip
    return replace(data, train=loader)


def shown(stage: str, done: int, total: int, values: dict[str, float]) -> None:
    """A line now and then."""
    if stage == "fine-tuning" and done % 100 == 0:
        print(f"{done}/{total}", {k: round(v, 4) for k, v in values.items()}, flush=True)


def rows(path: Path) -> list[dict[str, Any]]:
    """What was run so far."""
    return json.loads(path.read_text()) if path.exists() else []


if __name__ == "__main__":
    main()
