"""Search the plans of the table: methods and ranks at shares of the MACs, nothing trained.

    PYTHONPATH=. python experiments/cifar10/published/plans.py resnet20 --data FOLDER

FOLDER holds cifar10/ and models/. Each plan is written to plans/NET-METHOD-SHARE.json; those that
are there already are kept. 1,000 training images without labels, seed 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from factorize.fit import FitConfig
from factorize.plan import Budget, save_plan
from factorize.search.prepare import prepare
from factorize.types import Data

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[1] / "fit"))

from tasks import task  # noqa: E402

IMAGES, SEED = 1000, 0


def main() -> None:
    """Read the arguments, search the plans that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("net", choices=("resnet20", "resnet56"))
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    rows = json.loads((HERE / "config.json").read_text())["rows"]
    wanted = [
        (method, row["macs"])
        for row in rows
        if row["net"] == options.net
        for method in row["methods"]
        if not plan_path(options.net, method, row["macs"]).exists()
    ]
    if not wanted:
        return
    chosen = task(options.net, options.data)
    images = chosen.calibration(IMAGES, SEED)
    batches = [(batch,) for batch in images.split(chosen.batch)]
    data = Data(batches, batches, None, False, None, f"{options.net}, training images")
    config = FitConfig(images=IMAGES)
    search = prepare(chosen.model, images[:1], data=data, config=config, seed=SEED)
    for method, share in wanted:
        start, budget = time.perf_counter(), Budget(macs=share)
        if method == "auto":
            plan = search.within(budget).choice.plan
        else:
            plan = search.choose(budget, only=method).plan
        path = plan_path(options.net, method, share)
        path.parent.mkdir(exist_ok=True)
        save_plan(plan, path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)


def plan_path(net: str, method: str, share: float) -> Path:
    """Where the plan of a row is."""
    return HERE / "plans" / f"{net}-{method}-{share:g}.json"


if __name__ == "__main__":
    main()
