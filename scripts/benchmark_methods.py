"""Time every method on the 3x3 convolutions of resnet18 and vgg16, at half their MACs.

Beside them, on the same kernels in the same process and alternately: the bare LAPACK calls for the
methods that are an SVD, tensorly's `partial_tucker` for Tucker-2, its `parafac` for CP. Weights are
random (seeded), as torchvision initializes them. Peak memory is that of a fresh process that
factorizes the whole net. Writes a JSON file, and its tables into the README.md beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tensorly
import torch
import torchvision
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tensorly.decomposition import parafac, partial_tucker
from tensorly.decomposition._cp import initialize_cp
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from factorize import find, methods
from factorize.measure import environment
from factorize.methods.base import Method
from factorize.methods.cp import Cp
from factorize.methods.svd import SvdMethod
from factorize.plan import bind, choose
from factorize.types import ConvSite, Factorization, LayerPlan, Plan, Rank

RESULTS = Path(__file__).parents[1] / "experiments" / "methods" / "results.json"
LAPACK, SPEEDUP, MEMORY = 1.5, 5.0, 2e9  # the targets: at most, at least, under (bytes)
MARK = "<!-- made by scripts/benchmark_methods.py: do not edit below -->"


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
        if len(self.rank) == 1:
            plan = choose(
                [self.site], lambda _: self.weight, method=self.method.name, rank=self.rank[0]
            )
        else:
            wanted = LayerPlan(self.site.spec, self.method.name, self.rank)
            plan = bind(Plan((wanted,), {}), [self.site], lambda _: self.weight)
        layer = plan.layers[0]
        return layer, methods.factorize(layer, self.weight, seed=seed)


def convolutions(net: str, seed: int) -> tuple[nn.Module, list[ConvSite]]:
    """A torchvision net with random weights, and its 3x3 convolutions but the first."""
    torch.manual_seed(seed)
    model = torchvision.models.get_model(net, weights=None)
    sites = find(model, torch.zeros(1, 3, 224, 224))
    return model, [s for s in sites if s.spec.kernel == (3, 3) and s.spec.in_channels > 4]


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


def cases_of(options: argparse.Namespace) -> list[Case]:
    """Each distinct (kernel shape, method, rank) of all nets once, with its counts."""
    cases: dict[Any, Case] = {}
    for net in options.nets:
        model, sites = convolutions(net, options.seed)
        for name in options.methods:
            for site in sites:
                if options.quick and max(site.spec.weight_shape) > 128:
                    continue
                method = methods.get(name)
                weight = model.get_submodule(site.spec.name).weight.detach()
                rank = half_rank(method, site)
                key = (tuple(weight.shape), name, rank)
                case = cases.setdefault(key, Case(site, weight.clone(), method, rank))
                case.counts[net] = case.counts.get(net, 0) + 1
    return list(cases.values())


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the function returned."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, range and number of runs."""
    return {
        "seconds": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "runs": len(seconds),
    }


def run_case(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Time one case and its peer alternately: at least `repeats` times, cheap ones more often."""
    exact = case.weight.to(torch.float64)
    kernel = (case.method.modes(exact) if isinstance(case.method, Cp) else exact.flatten(2)).numpy()
    peer: Callable[[], Any] | None = None
    if isinstance(case.method, SvdMethod):
        matrices = [case.method.matrix(exact, v).contiguous() for v in case.method.variants]
        name = "torch.linalg.svd of both orders"
        peer = lambda: [torch.linalg.svd(m, full_matrices=False) for m in matrices]  # noqa: E731
    elif case.method.name == "tucker2" and not options.skip_tensorly:
        name = "tensorly partial_tucker"
        peer = lambda: partial_tucker(kernel, case.rank[::-1], modes=[0, 1])  # noqa: E731

    mine, theirs, result = [], [], None
    while len(mine) < options.repeats or (sum(mine + theirs) < 1 and len(mine) < 15):
        seconds, (layer, fitted) = timed(lambda: case.factorize(options.seed))
        mine.append(seconds)
        if peer:
            seconds, result = timed(peer)
            theirs.append(seconds)
    row: dict[str, Any] = {
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
        row["peer"] = race_parafac(kernel, case.rank[0], row["seconds"], fitted.error)
    elif peer:
        row["peer"] = {"name": name, **spread(theirs)}
        if not isinstance(case.method, SvdMethod):
            tucker, _ = result
            modelled = tensorly.tenalg.multi_mode_dot(tucker[0], tucker[1], modes=[0, 1])
            row["peer"]["error"] = float(np.linalg.norm(kernel - modelled) / np.linalg.norm(kernel))
    if "peer" in row:
        row["ratio"] = row["peer"]["seconds"] / row["seconds"]
        row["target_met"] = target_met(row)
    return row


def race_parafac(kernel: np.ndarray, rank: int, ours: float, error: float) -> dict[str, Any]:
    """Run `parafac` until it is as good as ours, or has had `SPEEDUP` times as long.

    Its own start (by SVD) counts; the error of that start, which only its callback asks for, not.
    """
    budget = SPEEDUP * ours
    start_seconds, start = timed(
        lambda: initialize_cp(kernel, rank, random_state=np.random.RandomState(0))
    )
    clock = time.perf_counter
    history: list[tuple[float, float]] = []  # (seconds, error) after the start, then each iteration
    begin = 0.0

    def callback(_: Any, reached: Any) -> bool:
        nonlocal begin
        begin = begin or clock()
        history.append((start_seconds + clock() - begin, float(reached)))
        return history[-1][0] >= budget or float(reached) <= error

    failure = None
    try:
        if start_seconds < budget:
            parafac(kernel, rank, init=start, tol=1e-8, random_state=0, callback=callback)
    except np.linalg.LinAlgError as reason:
        failure = str(reason)
    within = [e for s, e in history if s <= budget]
    equal = next((s for s, e in history if e <= error), None)
    return {
        "name": "tensorly parafac",
        "seconds": history[-1][0] if history else start_seconds,
        "runs": 1,
        "start_seconds": start_seconds,
        "first_iteration_seconds": history[1][0] - start_seconds if len(history) > 1 else None,
        "iterations": max(len(history) - 1, 0),
        "budget_seconds": budget,
        "error_within_budget": min(within) if within else None,
        "error": history[-1][1] if history else None,
        "seconds_to_equal_error": equal,
        "failure": failure,
    }


def target_met(row: dict[str, Any]) -> bool:
    """Whether the method is as fast beside its peer as it is to be."""
    peer = row["peer"]
    if "budget_seconds" in peer:
        equal = peer["seconds_to_equal_error"]
        return equal is None or equal >= peer["budget_seconds"]
    if "error" in peer:
        return row["ratio"] >= SPEEDUP and row["error"] <= peer["error"] * (1 + 1e-6)
    return row["ratio"] >= 1 / LAPACK


def factorize_net(net: str, method: str, options: argparse.Namespace) -> dict[str, float]:
    """Factorize every kernel of a net in this process: its time and the process's peak memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    model, sites = convolutions(net, options.seed)
    if options.quick:
        sites = [s for s in sites if max(s.spec.weight_shape) <= 128]

    def peak() -> int:
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before, kept = peak(), []
    start = time.perf_counter()
    for site in sites:
        weight = model.get_submodule(site.spec.name).weight
        chosen = methods.get(method)
        kept.append(Case(site, weight, chosen, half_rank(chosen, site)).factorize(options.seed))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "baseline_bytes": before, "peak_bytes": peak()}


def in_fresh_process(net: str, method: str, options: argparse.Namespace) -> dict[str, float]:
    """`factorize_net` in a process of its own.

    Linux counts the parent's peak as the child's: call this while this process is still small.
    """
    command = [sys.executable, __file__, "--one", "--nets", net, "--methods", method]
    command += ["--threads", str(options.threads), "--seed", str(options.seed)]
    command += ["--quick"] if options.quick else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def summaries(
    rows: list[dict[str, Any]], memory: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Per net and method: the kernels' medians times their counts."""
    found = []
    for net, by_method in memory.items():
        for method, process in by_method.items():
            mine = [r for r in rows if r["method"] == method and net in r["counts"]]
            peers = [r for r in mine if "peer" in r]
            entry: dict[str, Any] = {
                "net": net,
                "method": method,
                "kernels": sum(r["counts"][net] for r in mine),
                "seconds": sum(r["counts"][net] * r["seconds"] for r in mine),
                "process": process,
            }
            if peers:
                entry["peer"] = peers[0]["peer"]["name"]
                entry["peer_seconds"] = sum(r["counts"][net] * r["peer"]["seconds"] for r in peers)
                entry["ratio"] = entry["peer_seconds"] / entry["seconds"]
                entry["kernels_on_target"] = sum(r["counts"][net] for r in peers if r["target_met"])
            found.append(entry)
    return found


def tables(results: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """The results as (title, header, rows): one table of nets, one of kernels."""
    nets = []
    for s in results["nets"]:
        process, peer = s["process"], "ratio" in s
        nets.append([
            s["net"], s["method"], str(s["kernels"]), f"{s['seconds']:.2f}",
            f"{s['peer_seconds']:.2f}" if peer else "", f"{s['ratio']:.2f}" if peer else "",
            f"{s['kernels_on_target']}/{s['kernels']}" if peer else "",
            f"{process['seconds']:.1f}", f"{process['peak_bytes'] / 1e9:.2f}",
            f"{(process['peak_bytes'] - process['baseline_bytes']) / 1e9:.2f}",
        ])  # fmt: skip
    kernels = []
    for r in results["kernels"]:
        peer = r.get("peer", {})
        error, equal = peer.get("error"), peer.get("seconds_to_equal_error")
        kernels.append([
            "x".join(map(str, r["shape"])), r["method"], ",".join(map(str, r["rank"])),
            f"{r['macs_share']:.3f}", f"{r['seconds']:.4f}", f"{r['min']:.4f}-{r['max']:.4f}",
            f"{r['error']:.5f}", f"{peer['seconds']:.4f}" if peer else "",
            f"{error:.5f}" if error is not None else "", str(peer.get("iterations", "")),
            f"{equal:.2f}" if equal else "",
            {True: "yes", False: "NO", None: ""}[r.get("target_met")],
        ])  # fmt: skip
    return [
        ("Nets", ["net", "method", "kernels", "s", "peer s", "peer / ours", "on target",
                  "s, fresh process", "peak GB", "above baseline GB"], nets),
        ("Kernels", ["kernel", "method", "rank", "MACs share", "s", "min-max", "error", "peer s",
                     "peer error", "iterations", "s to our error", "on target"], kernels),
    ]  # fmt: skip


def write_readme(results: dict[str, Any], path: Path) -> None:
    """Replace all that follows the mark in a README by the tables of the results."""
    head = path.read_text(encoding="utf-8").partition(MARK)[0] if path.exists() else ""
    run, lines = results["run"], [MARK, ""]
    lines += [
        f"{run['started']}, {run['environment']['cpu']}, {run['threads']} threads, torch "
        f"{run['environment']['torch']}, tensorly {run['tensorly']}, numpy {run['numpy']}, seed "
        f"{run['seed']}; load average {run['load_start'][0]:.1f} at the start, "
        f"{run['load_end'][0]:.1f} at the end; {run['minutes']:.1f} minutes.",
    ]
    for title, header, rows in tables(results):
        lines += ["", f"## {title}", "", *(f"| {' | '.join(c)} |" for c in (header,))]
        lines += [f"|{'---|' * len(header)}", *(f"| {' | '.join(row)} |" for row in rows)]
    path.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Run, print the tables, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", nargs="+", default=["resnet18", "vgg16"])
    parser.add_argument("--methods", nargs="+", choices=methods.names(), default=methods.names())
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
            print(json.dumps(factorize_net(options.nets[0], options.methods[0], options)))
            return
        run(options)


def run(options: argparse.Namespace) -> None:
    """Memory first, while this process is small; then the kernels."""
    console, begin = Console(), time.perf_counter()
    header: dict[str, Any] = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "load_start": os.getloadavg(),
    }
    memory: dict[str, dict[str, Any]] = {net: {} for net in options.nets}
    rows = []
    with Progress(console=console) as progress:
        task = progress.add_task("memory", total=len(options.nets) * len(options.methods))
        for net in options.nets:
            for method in options.methods:
                progress.update(task, description=f"whole {net} {method}")
                memory[net][method] = in_fresh_process(net, method, options)
                progress.advance(task)
        cases = cases_of(options)
        task = progress.add_task("kernels", total=len(cases))
        for case in cases:
            shape = "x".join(map(str, case.weight.shape))
            progress.update(task, description=f"{case.method.name} {shape}")
            rows.append(run_case(case, options))
            progress.advance(task)
    results = {
        "run": {
            **header,
            "load_end": os.getloadavg(),
            "minutes": (time.perf_counter() - begin) / 60,
            "threads": options.threads,
            "repeats": options.repeats,
            "seed": options.seed,
            "niceness": os.nice(0),
            "weights": "random, as torchvision initializes them",
            "repeated_shapes": "timed once, times their count; 'process' runs every kernel",
            "environment": environment(),
            "tensorly": version("tensorly"),
            "numpy": np.__version__,
        },
        "nets": summaries(rows, memory),
        "kernels": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.out.with_name(options.out.name + ".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    temporary.replace(options.out)
    write_readme(results, options.out.with_name("README.md"))
    for title, columns, lines in tables(results):
        table = Table(*columns, title=title)
        for line in lines:
            table.add_row(*line)
        console.print(table)


if __name__ == "__main__":
    main()
