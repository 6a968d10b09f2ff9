"""What targets like: chains at half and a third of the MACs beside dense, and steps of channels.

    PYTHONPATH=. python experiments/runtimes/likes.py [--targets onnxruntime openvino] [--threads 2]

Writes likes.json, and the table in README.md. Times are those of a search; none are taken from its
cache.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tables import write_tables

from factorize import methods
from factorize.measure import LatencyModel, NumberCache, Target
from factorize.measure.environment import environment
from factorize.search.offers import hardware_step
from factorize.spec import ConvSpec

HERE = Path(__file__).parent
LAYERS = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels, height and width
SHARES = (0.5, 1 / 3)
RANKS = 200  # looked at


def main() -> None:
    """Time and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--layers", type=int, default=len(LAYERS), help="so many of them")
    parser.add_argument("--out", type=Path, default=HERE / "likes.json")
    options = parser.parse_args()
    rows = json.loads(options.out.read_text()) if options.out.exists() else []
    for name in options.targets:
        target = Target(name, threads=options.threads, dtype=options.dtype)
        model = LatencyModel(target, NumberCache(None))
        row: dict[str, Any] = {"target": str(target), "dtype": target.dtype}
        row |= {"step": hardware_step(model), "context": target.context()}
        row["chains"] = [one for layer in LAYERS[: options.layers] for one in _gains(model, *layer)]
        rows = [
            one for one in rows if (one["target"], one["dtype"]) != (row["target"], row["dtype"])
        ]
        rows.append({**row, "environment": environment()})
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
        write_tables(HERE)


def _gains(model: LatencyModel, channels: int, size: int) -> list[dict[str, Any]]:
    """What the methods' chains gain for one 3x3 layer."""
    spec = ConvSpec(
        "", "conv2d", channels, channels, (3, 3), (1, 1), (1, 1), (1, 1),
        input_sizes=((size, size),),
    )  # fmt: skip
    found = []
    for name in methods.names():
        method = methods.get(name)
        if method.supports(spec) or not method.searched:
            continue
        for share in SHARES:
            wanted = [
                (rank, variant, method.stages(spec, rank, variant))
                for rank in method.ladder(spec, step=16, count=RANKS)
                for variant in method.variants_of(spec)
            ]
            costs = [sum(stage.macs for stage in chain) / spec.macs for *_, chain in wanted]
            near = [one for one in zip(costs, wanted, strict=True) if one[0] <= share + 0.02]
            if not near:
                continue
            most = max(cost for cost, _ in near)
            chains = [one for cost, one in near if cost == most]
            times = model.times(spec, [chain for *_, chain in chains])
            known = [
                (time, one) for time, one in zip(times, chains, strict=True) if time is not None
            ]
            if known:
                time, (rank, variant, _) = max(known, key=lambda one: one[0].speedup)
                found.append({"channels": channels, "size": size, "method": name, "share": share,
                              "macs": most, "rank": rank, "variant": variant,
                              "speedup": [time.speedup, time.low, time.high]})  # fmt: skip
    return found


if __name__ == "__main__":
    main()
