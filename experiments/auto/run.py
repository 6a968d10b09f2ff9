"""Accuracy at shares of a net's MACs: methods mixed, each method alone, uniform ranks.

    python experiments/auto/run.py resnet20 --data FOLDER --shares 0.7,0.5,0.4,0.3 --seeds 0

Nothing is trained. 1,000 training images without labels: 800 to fit to, 200 to judge by. Rows are
added to results.json; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from factorize import methods
from factorize.errors import BudgetError
from factorize.fit import FitConfig
from factorize.measure.environment import environment
from factorize.plan import Budget
from factorize.search.prepare import prepare
from factorize.search.sweep import uniform
from factorize.search.within_budget import Search
from factorize.types import Data, Plan

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "fit"))

from tasks import Task, task  # noqa: E402

IMAGES = 1000
UNIFORM = ("spatial_svd", "cp")


def main() -> None:
    """Read the arguments, do the runs that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("net", choices=("resnet20", "resnet56", "dncnn"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shares", default="0.7,0.5,0.4,0.3")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--methods", default=",".join(methods.names()))
    parser.add_argument("--sensitivity", default="error")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    chosen = task(options.net, options.data)
    shares = [float(share) for share in options.shares.split(",")]
    for seed in map(int, options.seeds.split(",")):
        _run(chosen, options, shares, seed)


def _run(chosen: Task, options: argparse.Namespace, shares: list[float], seed: int) -> None:
    names = options.methods.split(",") if options.methods else []
    wanted = [
        {"net": options.net, "method": method, "share": share, "seed": seed,
         "sensitivity": options.sensitivity}
        for share in shares
        for method in ("auto", *names, *(f"{name}, uniform" for name in UNIFORM if names))
    ]  # fmt: skip
    missing = [key for key in wanted if not any(key.items() <= r.items() for r in _rows(options))]
    if not missing:
        return
    images = chosen.calibration(IMAGES, seed)
    batches = [(batch,) for batch in images.split(chosen.batch)]
    data = Data(batches, batches, None, False, None, f"{options.net}, training images")
    start = time.perf_counter()
    search = prepare(
        chosen.model, images[:1], data=data, config=FitConfig(images=IMAGES), seed=seed,
        sensitivity=options.sensitivity,
    )  # fmt: skip
    prepared = time.perf_counter() - start
    dense = chosen.score(chosen.model)
    for key in missing:
        start = time.perf_counter()
        plan, rounds = _plan(search, key)
        if plan is None:
            continue
        row: dict[str, Any] = {**key, "score": chosen.score(search.fits.applied(plan))}
        used: dict[str, int] = {}
        for layer in plan.factorized:
            used[layer.method or ""] = used.get(layer.method or "", 0) + 1
        macs = sum(layer.spec.macs - layer.macs for layer in plan.factorized)
        row |= {
            "dense": dense, "unit": chosen.unit, "macs": 1 - macs / search.tables.macs,
            "judged_loss": search.fits.loss(plan), "methods": used, "rounds": rounds,
            "seconds": time.perf_counter() - start, "prepare_seconds": prepared,
            "threads": torch.get_num_threads(), "environment": environment(),
        }  # fmt: skip
        # Another process may have added rows meanwhile.
        text = json.dumps([*_rows(options), row], indent=1)
        options.out.write_text(text + "\n")
        print({k: row[k] for k in ("net", "method", "share", "score", "judged_loss", "seconds")},
              used, flush=True)  # fmt: skip


def _plan(search: Search, key: dict[str, Any]) -> tuple[Plan | None, list[Any]]:
    budget, method = Budget(macs=key["share"]), key["method"]
    if method == "auto":
        found = search.within(budget)
        return found.choice.plan, list(found.trials)
    if method.endswith(", uniform"):
        wanted = key["share"] * search.tables.macs
        return uniform(search.tables, method.removesuffix(", uniform"), wanted), []
    with contextlib.suppress(BudgetError):
        return search.choose(budget, only=method).plan, []
    return None, []


def _rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    return json.loads(options.out.read_text()) if options.out.exists() else []


if __name__ == "__main__":
    main()
