"""Accuracy of nets at shares of their convolution MACs, by method and fit; nothing is trained.

    python experiments/fit/run.py resnet20 --data FOLDER --methods cp,spatial_svd \
        --fits weights,outputs,sequential,reconstruct --shares 0.5,0.4,0.3 --seeds 0,1,2

FOLDER holds cifar10/, denoise/ and models/. Results are added to results.json; what is there
already is not run again. Methods are names, or block_term:WIDTH.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from budget import curves, plan_for, sensitivities, specs_of
from tasks import Task, task

from factorize import calibrate
from factorize.fit import (
    Fitted,
    apply_,
    fit_outputs,
    fit_sequential,
    fit_weights,
    reconstruct,
)
from factorize.measure.environment import environment

HERE = Path(__file__).parent
FITS = ("weights", "outputs", "sequential", "reconstruct")
SENSITIVITY_IMAGES = 400


def main() -> None:
    """Read the arguments, do the runs that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("net", choices=("resnet20", "resnet56", "dncnn"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--methods", default="cp,spatial_svd")
    parser.add_argument("--fits", default="weights,outputs,sequential")
    parser.add_argument("--shares", default="0.5,0.4,0.3")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--images", default="1000")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    options = parser.parse_args()

    chosen = task(options.net, options.data)
    dense = {"net": options.net, "method": "dense", "fit": "", "share": 1.0}
    if not any(dense.items() <= row.items() for row in read_rows(options.out)):
        score = round(chosen.score(chosen.model), 3)
        add_row(options.out, {**dense, "score": score, "unit": chosen.unit})
    for seed in map(int, options.seeds.split(",")):
        for images in map(int, options.images.split(",")):
            for method in options.methods.split(","):
                wanted = [
                    {"net": options.net, "method": method, "fit": fit, "share": share,
                     "images": images, "seed": seed}
                    for share in map(float, options.shares.split(","))
                    for fit in FITS
                    if fit in options.fits.split(",")
                ]  # fmt: skip
                done = read_rows(options.out)
                missing = [key for key in wanted if not any(key.items() <= r.items() for r in done)]
                if missing:
                    _run(chosen, missing, options.out)


def _run(chosen: Task, wanted: list[dict[str, Any]], out: Path) -> None:
    """All fits of one method on one set of images."""
    first = wanted[0]
    method, _, width = first["method"].partition(":")
    images, seed = chosen.calibration(first["images"], first["seed"]), first["seed"]
    batches = images.split(chosen.batch)
    model = chosen.model
    seconds: dict[str, float] = {}

    start = time.perf_counter()
    specs, total = specs_of(model, images[:1])
    moments = calibrate.collect(model, specs, batches, seed=seed)
    seconds["calibrate"] = time.perf_counter() - start
    start = time.perf_counter()
    found = curves(model, specs, moments, method, width=int(width or 0), seed=seed)
    seconds["curves"] = time.perf_counter() - start
    start = time.perf_counter()
    sensitivity = sensitivities(model, specs, moments, images[:SENSITIVITY_IMAGES], seed=seed)
    seconds["sensitivities"] = time.perf_counter() - start

    sequential: dict[float, Fitted] = {}
    for key in wanted:
        share = key["share"]
        plan = plan_for(specs, found, sensitivity, total, share, method, width=int(width or 0))
        start = time.perf_counter()
        if key["fit"] == "weights":
            fitted = fit_weights(model, plan, seed=seed)
        elif key["fit"] == "outputs":
            fitted = fit_outputs(model, plan, moments, seed=seed)
        elif key["fit"] == "sequential" or share not in sequential:
            fitted = sequential[share] = fit_sequential(model, plan, batches, seed=seed)
        if key["fit"] == "reconstruct":
            fitted = reconstruct(model, sequential[share], batches, seed=seed)
        elapsed = time.perf_counter() - start
        compressed = apply_(copy.deepcopy(model), fitted)
        layers = fitted.layers.values()
        row = {
            **key,
            "score": round(chosen.score(compressed), 3),
            "unit": chosen.unit,
            "macs_left": macs_left(plan, total),
            "error": _rms([made.error for made in layers]),
            "held_out_error": _rms([made.held_out_error for made in layers]),
            "seconds": {**seconds, "fit": elapsed},
            "ranks": {name: list(made.rank) for name, made in fitted.layers.items()},
            "environment": {**environment(), "threads": torch.get_num_threads(),
                            "load": round(os.getloadavg()[0], 1)},
        }  # fmt: skip
        add_row(out, row)
        print(
            {k: row[k] for k in (*key, "score", "held_out_error")}, f"{elapsed:.0f} s", flush=True
        )


def macs_left(plan: Any, total: int) -> float:
    """Share of the convolution MACs."""
    dense = total - sum(layer.spec.macs for layer in plan.layers)
    return round((dense + sum(layer.macs for layer in plan.layers)) / total, 4)


def _rms(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    return round((sum(value**2 for value in known) / len(known)) ** 0.5, 5)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What is there already."""
    return json.loads(path.read_text()) if path.exists() else []


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row; the file is whole at any time."""
    rows = [*read_rows(path), row]
    part = path.with_suffix(".part")
    part.write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
    part.replace(path)


if __name__ == "__main__":
    main()
