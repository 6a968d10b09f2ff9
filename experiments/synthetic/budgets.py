"""Several shares of the MACs from one search, as `--macs 0.5,0.4,0.3` asks for them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from sources import split

from factorize import tune
from factorize.data.synthetic import MadeUp
from factorize.fit import FitConfig, reconstructed
from factorize.plan import Budget
from factorize.run.checks import resolved_outputs
from factorize.run.made_up import delivered, is_reconstructed, make_up, seen_by
from factorize.search.prepare import prepare
from factorize.types import Data

SHARES = {"resnet20": (0.5, 0.4, 0.3), "resnet56": (0.5, 0.3, 0.2), "dncnn": (0.5,)}
SHAPES = {"resnet20": (3, 32, 32), "resnet56": (3, 32, 32), "dncnn": (1, 40, 40)}
METHODS = ("auto", "cp", "spatial_svd")
SOURCES = ("made up", "real", "weights")
SEEDS = (0, 1, 2)
SEQUENTIAL = "sequential"


def budgets(folder: Path | None) -> Iterator[tuple[str, Any]]:
    """Every net, all of seed 0 first; the weights know no seed."""
    for seed in SEEDS:
        for net in SHARES:
            for method in METHODS:
                for source in SOURCES:
                    if seed and source == "weights":
                        continue
                    name = f"{net}, {method}, {source}, seed {seed}"
                    yield name, partial(_searched, net, method, source, seed, folder)


def _searched(net: str, method: str, source: str, seed: int, folder: Path | None) -> dict[str, Any]:
    """One search, and each of its points as a run would deliver it."""
    start = time.perf_counter()
    this, data = _task(net, folder), _data(net, source, seed, folder)
    seen = seen_by(this.model, data, device="cpu")
    search = prepare(
        seen, torch.zeros(1, *SHAPES[net]), names=[] if method == "auto" else [method], data=data,
        config=FitConfig("weights") if data is None else FitConfig(), seed=seed,
    )  # fmt: skip
    points = {}
    for share in SHARES[net]:
        found = search.within(Budget(macs=share))
        made = delivered(this.model, found.fitted, seen)
        alone = None
        if source == "real":
            tune.recalibrate(made, this.model, data)
        elif data and is_reconstructed(seen, torch.zeros(1, *SHAPES[net]), FitConfig(), SEQUENTIAL):
            alone = this.score(made)
            made = delivered(
                this.model,
                reconstructed(
                    seen, found.fitted, FitConfig(), data, device="cpu", seed=seed, progress=None
                ),
                seen,
            )
        saved = sum(layer.spec.macs - layer.macs for layer in found.choice.plan.factorized)
        points[f"{share:g}"] = {
            "score": this.score(made), "macs": 1 - saved / search.tables.macs, "loss": found.loss,
            "fitted alone": alone,
            "methods": Counter(layer.method for layer in found.choice.plan.factorized),
        }  # fmt: skip
    return {"points": points, "seconds": time.perf_counter() - start}


@cache
def _task(net: str, folder: Path | None) -> Any:
    from tasks import task

    assert folder is not None
    return task(net, folder)


@cache
def _data(net: str, source: str, seed: int, folder: Path | None) -> Data | None:
    """A thousand images and those held out; made once for all methods."""
    this, data = _task(net, folder), None
    if source == "real":
        data = split(this.calibration(1250, seed), this.batch)
    elif source == "made up":
        data = make_up(
            MadeUp(), this.model, torch.zeros(1, *SHAPES[net]), outputs=None, device="cpu",
            seed=seed, progress=None,
        )  # fmt: skip
    if data is None:
        return None
    return replace(data, outputs=resolved_outputs(this.model, data, None, None, None)[0])
