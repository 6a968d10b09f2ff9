"""Time the methods on the 3x3 convolutions of resnet18 and vgg16, at half their MACs.

Beside them, on the same kernels in the same process and alternately: the bare LAPACK calls for the
methods that are an SVD, tensorly's `partial_tucker` for Tucker-2, its `parafac` for CP. Weights are
random (seeded), as torchvision initializes them. Peak memory is that of a fresh process that
factorizes the whole net. Writes a JSON file, and its tables into the README.md beside it. Needs
the extra ``demo``, for threadpoolctl.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from benchmark_peers import (
    METHODS,
    PARTIAL_TUCKER,
    peer_of,
    race_parafac,
    spread,
    target_met,
    timed,
    tucker_error,
)
from benchmark_tables import Row, summaries, tables, write_readme
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from factorize import find, methods
from factorize.graph import effective_weight
from factorize.measure import environment
from factorize.methods.base import Method
from factorize.methods.cp import Cp
from factorize.plan import bind, choose
from factorize.spec import Rank
from factorize.types import ConvSite, Factorization, LayerPlan, Plan

RESULTS = Path(__file__).parents[1] / "experiments" / "methods" / "results.json"


@dataclass
class Case:
    """One kernel by one method; kernels of one shape differ in nothing but random numbers."""

    site: ConvSite
    weight: Tensor
    method: Method
    rank: Rank
    counts: dict[str, int] = field(default_factory=dict)  # by net

    def factorize(self, seed: int) -> tuple[LayerPlan, Factorization]:
        """What the tool does for a layer: choose the order of the chain, then factorize."""
        name, rank = self.method.name, self.rank
        if len(rank) == 1:
            plan = choose([self.site], lambda _: self.weight, method=name, rank=rank[0])
        else:
            wanted = Plan((LayerPlan(self.site.spec, name, rank),), {})
            plan = bind(wanted, [self.site], lambda _: self.weight)
        return plan.layers[0], methods.factorize(plan.layers[0], self.weight, seed=seed)


def half_rank(method: Method, site: ConvSite) -> Rank:
    """The largest rank whose chain, in its costlier order, has at most half the layer's MACs.

    Of several ranks each is the same share of its maximum. 1 where even that costs more.
    """
    limit = method.max_rank(site.spec)

    def rank(step: int) -> Rank:
        return tuple(max(1, top * step // max(limit)) for top in limit)

    low, high = 1, max(limit)
    while low < high:
        middle = (low + high + 1) // 2
        chains = [method.stages(site.spec, rank(middle), v) for v in method.variants]
        if 2 * max(sum(s.macs for s in chain) for chain in chains) <= site.spec.macs:
            low = middle
        else:
            high = middle - 1
    return rank(low)


def convolutions(net: str, options: argparse.Namespace) -> tuple[nn.Module, list[ConvSite]]:
    """A torchvision net with random weights, and its 3x3 convolutions but the first."""
    torch.manual_seed(options.seed)
    model = torchvision.models.get_model(net, weights=None)
    sites = [s for s in find(model, torch.zeros(1, 3, 224, 224)) if s.spec.kernel == (3, 3)]
    widest = 128 if options.quick else sys.maxsize
    return model, [
        s for s in sites if s.spec.in_channels > 4 and max(s.spec.weight_shape) <= widest
    ]


def cases_of(options: argparse.Namespace) -> list[Case]:
    """Each distinct (kernel shape, method, rank) of all nets once, with its counts."""
    cases: dict[Any, Case] = {}
    for net in options.nets:
        model, sites = convolutions(net, options)
        for method in map(methods.get, options.methods):
            for site in sites:
                weight = effective_weight(model.get_submodule(site.spec.name))
                rank = half_rank(method, site)
                case = cases.setdefault(
                    (tuple(weight.shape), method.name, rank),
                    Case(site, weight.clone(), method, rank),
                )
                case.counts[net] = case.counts.get(net, 0) + 1
    return list(cases.values())


def run_case(case: Case, options: argparse.Namespace) -> Row:
    """Time one case and its peer alternately: at least `repeats` times, cheap ones more often."""
    exact = case.weight.to(torch.float64)
    peer, name = peer_of(case.method, exact, case.rank)
    if options.skip_tensorly and name == PARTIAL_TUCKER:
        peer = None
    mine: list[float] = []
    theirs: list[float] = []
    result: Any = None
    while True:
        seconds, (layer, fitted) = timed(lambda: case.factorize(options.seed))
        mine.append(seconds)
        if peer:
            seconds, result = timed(peer)
            theirs.append(seconds)
        cheap = sum(mine + theirs) < 1 and len(mine) < 15
        if len(mine) >= options.repeats and not cheap:
            break
    row: Row = {
        "method": case.method.name,
        "shape": list(case.weight.shape),
        "stride": list(case.site.spec.stride),
        "counts": case.counts,
        "rank": list(case.rank),
        "variant": fitted.variant,
        "macs_share": layer.macs / layer.spec.macs,
        "error": fitted.error,
        **spread(mine),
    }
    if isinstance(case.method, Cp) and not options.skip_tensorly:
        kernel = case.method.modes(exact).numpy()
        row["peer"] = race_parafac(kernel, case.rank[0], row["seconds"], fitted.error)
    elif peer:
        row["peer"] = {"name": name, **spread(theirs)}
        if name == PARTIAL_TUCKER:
            row["peer"]["error"] = tucker_error(exact, *result[0])
    if "peer" in row:
        row["ratio"] = row["peer"]["seconds"] / row["seconds"]
        row["target_met"] = target_met(row)
    return row


def factorize_net(net: str, method: Method, options: argparse.Namespace) -> Row:
    """Factorize every kernel of a net in this process: its time and the process's peak memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    model, sites = convolutions(net, options)

    def peak() -> int:
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def factorize(site: ConvSite) -> Any:
        weight = effective_weight(model.get_submodule(site.spec.name))
        return Case(site, weight, method, half_rank(method, site)).factorize(options.seed)

    baseline = peak()
    seconds, _ = timed(lambda: [factorize(site) for site in sites])
    return {"seconds": seconds, "baseline_bytes": baseline, "peak_bytes": peak()}


def in_own_process(net: str, method: str, options: argparse.Namespace) -> Row:
    """`factorize_net` in a process of its own.

    Linux counts the parent's peak as the child's: call this while this process is still small.
    """
    command = [sys.executable, __file__, "--one", "--nets", net, "--methods", method]
    command += ["--threads", str(options.threads), "--seed", str(options.seed)]
    command += ["--quick"] if options.quick else []
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def run(options: argparse.Namespace, console: Console) -> Row:
    """All results. Memory first, while this process is small; then the kernels."""
    begin, load_start = time.perf_counter(), os.getloadavg()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    processes: dict[str, dict[str, Row]] = {net: {} for net in options.nets}
    kernels = []
    with Progress(console=console) as progress:
        task = progress.add_task("", total=len(options.nets) * len(options.methods))
        for net in options.nets:
            for method in options.methods:
                progress.update(task, description=f"memory: {net} {method}")
                processes[net][method] = in_own_process(net, method, options)
                progress.advance(task)
        cases = cases_of(options)
        task = progress.add_task("", total=len(cases))
        for case in cases:
            shape = "x".join(map(str, case.weight.shape))
            progress.update(task, description=f"time: {case.method.name} {shape}")
            kernels.append(run_case(case, options))
            progress.advance(task)
    about = {
        "started": started,
        "minutes": (time.perf_counter() - begin) / 60,
        "load_start": load_start,
        "load_end": os.getloadavg(),
        "niceness": os.nice(0),
        "threads": options.threads,
        "repeats": options.repeats,
        "seed": options.seed,
        "weights": "random, as torchvision initializes them",
        "repeated_shapes": "timed once, times their count; 'process' runs every kernel",
        "environment": environment(),
        "tensorly": version("tensorly"),
        "numpy": np.__version__,
    }
    return {"run": about, "nets": summaries(kernels, processes), "kernels": kernels}


def main() -> None:
    """Run, write the results, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", nargs="+", default=["resnet18", "vgg16"])
    parser.add_argument("--methods", nargs="+", choices=methods.names(), default=METHODS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--skip-tensorly", action="store_true")
    parser.add_argument("--quick", action="store_true", help="resnet18 up to 128 channels only")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.nets = ["resnet18"]
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="tensorly")
    with threadpool_limits(options.threads):  # numpy's BLAS, which tensorly computes with
        if options.one:
            method = methods.get(options.methods[0])
            print(json.dumps(factorize_net(options.nets[0], method, options)))
            return
        console = Console()
        results = run(options, console)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.out.with_name(options.out.name + ".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    temporary.replace(options.out)
    write_readme(results, options.out.with_name("README.md"))
    for title, columns, rows in tables(results):
        table = Table(*columns, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)


if __name__ == "__main__":
    main()
