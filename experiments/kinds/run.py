"""Nets of every kind of convolution: at full rank against the original, and at half the MACs.

    PYTHONPATH=. python experiments/kinds/run.py [NET ...]

Writes results.json (rows are replaced as they are run again), and the table of README.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from nets import NETS, build

import factorize
from factorize import methods
from factorize.measure.environment import environment
from factorize.types import LayerPlan

HERE = Path(__file__).parent
# CP of the largest 3-D kernels, at thousands of components, takes minutes each.
METHODS = ",".join(n for n in methods.names() if methods.get(n).closed and methods.get(n).searched)
MARK = "<!-- made by run.py: do not edit below -->"


def main() -> None:
    """Read the arguments, run the nets, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nets", nargs="*", choices=[*NETS, []], help="default: all")
    path = HERE / "results.json"
    rows = {row["net"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    for name in parser.parse_args().nets or NETS:
        rows[name] = run(name)
        path.write_text(json.dumps([rows[n] for n in NETS if n in rows], indent=1) + "\n")
        print(json.dumps({k: v for k, v in rows[name].items() if k != "environment"}))
    write_table(list(rows.values()))


def run(name: str) -> dict[str, Any]:
    """One net."""
    model, x = build(name)
    start = time.perf_counter()
    exact = full_rank(model, x)
    with torch.no_grad():
        wanted, got = model(x), factorize.rewrite(model, exact)(x)
        double = factorize.rewrite(model.double(), exact)(x.double())
        wanted64 = model(x.double())
    model.float()
    rewritten = time.perf_counter() - start
    result = factorize.compress(model, x, budget=factorize.Budget(macs=0.5), method=METHODS)
    report = result.report
    speed = report.speed[0]
    return {
        "net": name,
        "input": list(x.shape),
        "kinds": dict(Counter(layer.spec.kind for layer in exact.layers)),
        "full_rank_layers": len(exact.factorized),
        "full_rank_float32": float((got - wanted).norm() / wanted.norm()),
        "full_rank_float64": float((double - wanted64).norm() / wanted64.norm()),
        "seconds_full_rank": rewritten,
        "macs": report.macs["compressed"] / report.macs["original"],
        "replaced": dict(Counter(layer.method for layer in result.plan.factorized)),
        "replaced_kinds": dict(Counter(layer.spec.kind for layer in result.plan.factorized)),
        "without_error": [
            one.name for one in report.layers if one.method and one.error is None
        ],
        "without_reason": [
            one.name for one in report.layers if not one.method and not one.skip_reason
        ],
        "quality": report.quality,
        "failures": list(report.failures),
        "speedup": [speed.speedup, speed.speedup_p10, speed.speedup_p90, speed.runtime],
        "seconds": time.perf_counter() - start,
        "threads": torch.get_num_threads(),
        "environment": environment(),
    }  # fmt: skip


def full_rank(model: torch.nn.Module, x: torch.Tensor) -> factorize.Plan:
    """Every layer by the next in turn of the methods of closed form that take it."""
    layers = []
    for index, site in enumerate(factorize.find(model, x)):
        usable = [n for n in methods.names() if methods.get(n).closed
                  and not methods.get(n).supports(site.spec)]  # fmt: skip
        # At full rank some chains are very wide: the cheaper half of them will do.
        usable.sort(key=lambda name: _macs(name, site.spec))
        name = usable[index % -(-len(usable) // 2)]
        rank = methods.get(name).max_rank(site.spec)
        layers.append(LayerPlan(site.spec, name, rank))
    return factorize.make_plan(model, x, edited=factorize.Plan(tuple(layers), {}))


def _macs(name: str, spec: factorize.ConvSpec) -> int:
    method = methods.get(name)
    stages = [method.stages(spec, method.max_rank(spec), v) for v in method.variants]
    return min(sum(stage.macs for stage in chain) for chain in stages)


def write_table(rows: list[dict[str, Any]]) -> None:
    """The README below its mark."""
    machine = rows[0]["environment"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, torch "
        f"{machine['torch']}, onnxruntime {machine['onnxruntime']}; {rows[0]['threads']} "
        "thread(s), other work beside it.",
        "",
        "| net, input | layers | full rank: layers, difference in float64, float32 | half MACs: "
        "left, replaced | speedup (p10..p90) | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        kinds = ", ".join(f"{count} {kind}" for kind, count in row["kinds"].items())
        replaced = ", ".join(f"{count} {kind}" for kind, count in row["replaced_kinds"].items())
        median, low, high, runtime = row["speedup"]
        lines.append(
            f"| {row['net']}, {'x'.join(map(str, row['input']))} | {kinds} | "
            f"{row['full_rank_layers']}, {row['full_rank_float64']:.1e}, "
            f"{row['full_rank_float32']:.1e} | {row['macs']:.3f}, {replaced} | "
            f"{median:.2f} ({low:.2f}..{high:.2f}) {runtime} | {row['seconds']:.0f} |"
        )
    readme = HERE / "README.md"
    head = readme.read_text().partition(MARK)[0]
    readme.write_text(f"{head}{MARK}\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
