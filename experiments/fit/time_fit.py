"""Where the time of a sequential fit goes: torchvision's resnet18 at 224, random weights.

    python experiments/fit/time_fit.py --method cp --images 256 --out time_resnet18.json

Random data says nothing of accuracy, but takes the time that real data takes. Stages are the
profiler's cumulative times; what they leave of the whole are the forward passes of both nets. Peak
memory is that of the process.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import resource
import time
from pathlib import Path

import torch
import torchvision
from budget import cost, rank_for, specs_of

from factorize import methods
from factorize.fit import fit_sequential
from factorize.measure.environment import environment
from factorize.types import LayerPlan, Plan

STAGES = {
    "second moments": ("moments.py", "add"),
    "regression target": ("moments.py", "target_and_norm"),
    "plain start": ("", "decompose"),
    "refinement": ("refine.py", "refine"),
    "errors on both parts": ("moments.py", "output_error"),
}


def main() -> None:
    """Fit once under the profiler."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="cp", choices=methods.names())
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--memory", type=float, default=2e9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    images = torch.randn(options.images, 3, 224, 224)
    base = _peak_gb()
    specs, total = specs_of(model, images[:1])
    variant = methods.get(options.method).variants[0]
    width = 16 if options.method == "block_term" else 0
    layers = tuple(
        LayerPlan(
            spec,
            options.method,
            rank_for(spec, options.method, variant, options.share, width),
            variant,
        )
        for spec in specs.values()
    )
    left = sum(cost(p.spec, options.method, p.rank, variant) - p.spec.macs for p in layers)
    profiler = cProfile.Profile()
    start = time.perf_counter()
    profiler.enable()
    fitted = fit_sequential(
        model, Plan(layers, {}), images.split(options.batch), memory=options.memory
    )
    profiler.disable()
    seconds = time.perf_counter() - start
    spent = dict.fromkeys(STAGES, 0.0)
    for (path, _, function), values in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        for stage, (file, name) in STAGES.items():
            if function == name and path.endswith(file) and "factorize" in path:
                spent[stage] += values[3]
    row = {
        "method": options.method, "images": options.images, "layers": len(fitted.layers),
        "macs_left": round(1 + left / total, 3), "seconds": round(seconds, 1),
        "stages": {k: round(v, 1) for k, v in spent.items()},
        "peak_gb": round(_peak_gb(), 2), "before_gb": round(base, 2),
        "threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 1),
        "environment": environment(),
    }  # fmt: skip
    print(json.dumps(row, indent=1))
    if options.out:
        rows = json.loads(options.out.read_text()) if options.out.exists() else []
        options.out.write_text(json.dumps([*rows, row], indent=1) + "\n")


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
