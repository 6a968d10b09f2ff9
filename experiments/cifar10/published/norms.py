"""What batch norms do to a net that was fitted to outputs, before any weight moves.

    PYTHONPATH=. python experiments/cifar10/published/norms.py --data FOLDER

ResNet-20 at 28 % of the MACs (``auto``) and its original: distance on held-out images with the
statistics of 1,000 training images, and top-1 after steps at a rate of 1e-9, with statistics of
the batch and with fixed ones. Writes norms.json.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from plans import HERE, plan_path
from run import fewer, nets_data

import factorize
from factorize import tune
from factorize.measure.environment import environment
from factorize.plan import load_plan

STILL = 1e-9  # a learning rate by which no weight moves
IMAGES = 4_000


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    given = json.loads((HERE / "config.json").read_text())["nets"]["resnet20"]
    model, data = nets_data(options.data, given, seed=0)
    example = torch.randn(1, 3, 32, 32)
    made = factorize.compress(
        model, example, plan=load_plan(plan_path("resnet20", "auto", 0.28)), data=data,
        latency=False, device="cpu", seed=0,
    ).model  # fmt: skip
    found: dict[str, object] = {"threads": torch.get_num_threads(), "environment": environment()}
    for name, one in (("original", model), ("compressed", made)):
        result = tune.recalibrate(copy.deepcopy(one), model, data)
        found[name] = {"distance": result.before, "with new statistics": result.after}
    some = fewer(data, IMAGES, seed=0)
    for norms in ("batch", "fixed"):
        tuned = copy.deepcopy(made)
        config = factorize.FinetuneConfig(1, lr=STILL, batch_norm=norms, may_stay=False)
        steps = factorize.finetune(tuned, model, some, config).steps
        top1 = factorize.measure_quality(model, tuned, example, data=data)["top1"]
        found[norms] = {"steps": steps, "top1": top1}
    (HERE / "norms.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
