"""Our methods beside AIMET's, tltorch's and tensorly's on the same kernels, at half the MACs.

    python scripts/compare_peers.py --peers PEERS/bin/python \
        --checkpoint resnet20-12fca82f.th --images train_0.npz

The peers run in an environment of their own (`requirements-peers.txt`), as one process that lives
as long as this one; all sides take turns. Whoever made a layer, its outputs on held-out inputs are
judged here, by one function. Without a checkpoint only the synthetic kernels are done. Writes a
JSON file, and its tables into the README.md beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from benchmark_peers import spread, timed
from benchmark_tables import Row
from peer_layers import ROOT, Layer, resnet20, synthetic
from peer_tables import write_readme
from rich.console import Console
from threadpoolctl import threadpool_limits
from torch import Tensor

from factorize import methods
from factorize.measure import environment
from factorize.methods.chain import chain_kernel, link, stage
from factorize.spec import ConvSpec, Rank
from factorize.tensor.norm import Norm
from factorize.types import Factorization, LayerPlan

SHARE = 0.5


def output_norm(layer: Layer) -> Norm:
    """From the patches that AIMET's regression gets too."""
    patches = layer.samples.flatten(1).double()
    return Norm((patches.T @ patches / len(patches),))


FITS: dict[str, Callable[[Layer], Norm | None]] = {
    "weights": lambda _: None,
    "outputs": output_norm,
}

PEERS = {  # by chain, in the order of the chain that the peer makes
    "spatial_svd": {"AIMET spatial SVD": "vertical_first"},
    "channel_svd": {"AIMET weight SVD": "pointwise_first"},
    "tucker2": {"tensorly partial_tucker": "", "tltorch Tucker": ""},
    "cp": {"tensorly parafac": ""},
    "cp4": {"tltorch CP": ""},
    "tensor_train": {"tltorch tensor train": ""},
    "channel_pruning": {"AIMET channel pruning": ""},
}

Stages = tuple[ConvSpec, ...]
Result = tuple[float, Tensor, Tensor]
"""Seconds, the kernel (O, I, k_h, k_w), and the layer's outputs (N, O, H', W')."""

AGREEMENT = 1e-3  # relative; in float32 a kernel of large cancelling factors loses digits


def ours(layer: Layer, method: str, ranks: dict[str, Rank], fit: str, seed: int) -> Factorization:
    """Fit every order of the chain, each at a rank of its own; the one that errs less."""
    norm = FITS[fit](layer)
    plans = [LayerPlan(layer.spec, method, rank, variant) for variant, rank in ranks.items()]
    fits = [methods.factorize(plan, layer.weight, norm=norm, seed=seed) for plan in plans]
    return min(fits, key=lambda fitted: fitted.error)


def run_ours(layer: Layer, method: str, fit: str, seed: int) -> tuple[Result, Rank, Stages]:
    """Factorize by our method, timed, and run the chain on the held-out inputs."""
    ranks = {v: half_rank(layer.spec, method, v) for v in methods.get(method).variants}
    seconds, fitted = timed(lambda: ours(layer, method, ranks, fit, seed))
    x = layer.inputs
    for one, weight in zip(fitted.stages, fitted.weights, strict=True):
        x = F.conv2d(x, weight.float(), None, one.stride, one.padding, groups=one.groups)
    kernel = chain_kernel(fitted.stages, fitted.weights)
    return (seconds, kernel, x), fitted.rank, fitted.stages


class Worker:
    """The peers' process: one request at a time."""

    def __init__(self, python: str, folder: Path) -> None:
        script = Path(__file__).with_name("peer_worker.py")
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
        self.folder = folder
        self.process = subprocess.Popen(
            [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=(folder / "stderr.txt").open("w"), text=True, bufsize=1,
            env={**os.environ, **threads, "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        self.versions: dict[str, str] = self._reply()

    def _reply(self) -> Row:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            tail = (self.folder / "stderr.txt").read_text(errors="replace")[-2000:]
            sys.exit(f"the peers' process ended ({self.process.wait()}):\n{tail}")
        return json.loads(line)

    def put(self, layer: Layer) -> str:
        """Write a layer to where the worker finds it."""
        path = self.folder / f"{layer.group}.{layer.spec.name}.npz"
        targets = layer.samples.flatten(1) @ layer.weight.flatten(1).T
        np.savez(
            path, weight=layer.weight.numpy(), inputs=layer.inputs.numpy(),
            samples=layer.samples.numpy(), targets=targets.numpy(),
            stride=layer.spec.stride, padding=layer.spec.padding,
        )  # fmt: skip
        return str(path)

    def run(self, path: str, peer: str, rank: Rank, seed: int) -> Result:
        """One decomposition, timed there; ArithmeticError says how the peer failed."""
        result = self.folder / "result.npz"
        request = {"layer": path, "peer": peer, "rank": rank, "seed": seed, "result": str(result)}
        assert self.process.stdin
        self.process.stdin.write(json.dumps(request) + "\n")
        reply = self._reply()
        if "failure" in reply:
            raise ArithmeticError(reply["failure"])
        with np.load(result) as stored:
            kernel, outputs = (torch.from_numpy(stored[key]) for key in ("kernel", "outputs"))
        return reply["seconds"], kernel, outputs

    def close(self) -> None:
        """End the process by ending its input."""
        self.process.communicate()


def chain_of(spec: ConvSpec, name: str, variant: str) -> tuple[Rank, Callable[[Rank], Stages]]:
    """The largest rank of a chain, and its stages by rank; two are chains that only peers have."""
    inputs, outputs = spec.in_channels, spec.out_channels
    if name == "channel_pruning":  # the kernel on some of the input channels
        return (inputs,), lambda rank: link(spec, stage(spec, (0, 1), rank[0], outputs))
    if name == "tensor_train":  # input, y, x, output
        tall, wide = spec.kernel
        return (inputs, min(inputs * tall, wide * outputs), outputs), lambda rank: link(
            spec, stage(spec, (), inputs, rank[0]), stage(spec, (0,), rank[0], rank[1]),
            stage(spec, (1,), rank[1], rank[2]), stage(spec, (), rank[2], outputs),
        )  # fmt: skip
    method = methods.get(name)
    return method.max_rank(spec), lambda rank: method.stages(spec, rank, variant)


def half_rank(spec: ConvSpec, name: str, variant: str) -> Rank:
    """The largest rank whose chain has at most half the MACs; several are a share of their max."""
    limit, stages = chain_of(spec, name, variant)

    def rank(step: int) -> Rank:
        return tuple(max(1, top * step // max(limit)) for top in limit)

    low, high = 1, max(limit)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(one.macs for one in stages(rank(middle))) <= SHARE * spec.macs:
            low = middle
        else:
            high = middle - 1
    return rank(low)


def row_of(layer: Layer, chain: str, side: str, rank: Rank, stages: Stages) -> Row:
    """What is known before any run."""
    return {
        "group": layer.group, "layer": layer.spec.name, "shape": list(layer.weight.shape),
        "stride": list(layer.spec.stride), "chain": chain, "side": side, "rank": list(rank),
        "macs_share": sum(one.macs for one in stages) / layer.spec.macs, "failures": [],
    }  # fmt: skip


def check(layer: Layer, result: Result) -> Result:
    """The result, unless its outputs are not those of its kernel; then ArithmeticError."""
    _, kernel, outputs = result
    composed = layer.run(kernel.float())
    if outputs.shape != composed.shape:
        raise ArithmeticError(f"its outputs are {[*outputs.shape]}, not {[*composed.shape]}")
    difference = float((outputs - composed).norm() / composed.norm())
    if not difference <= AGREEMENT:  # nor if it is not a number
        raise ArithmeticError(f"its outputs differ from those of its own kernel: {difference:.1e}")
    return result


def compare(layer: Layer, worker: Worker, options: argparse.Namespace) -> list[Row]:
    """One layer by every side in turn; the seed moves on from run to run."""
    path, spec = worker.put(layer), layer.spec
    rows: dict[tuple[str, str], Row] = {}
    runs: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for seed in range(options.seed, options.seed + options.repeats):
        for name, peers in PEERS.items():
            for fit in FITS if name in methods.names() else ():
                result, rank, stages = run_ours(layer, name, fit, seed)
                key = name, f"ours ({fit})"
                rows.setdefault(key, row_of(layer, *key, rank, stages))
                runs[key].append(check(layer, result))
            for peer, variant in peers.items():
                key, rank = (name, peer), half_rank(spec, name, variant)
                stages = chain_of(spec, name, variant)[1](rank)
                row = rows.setdefault(key, row_of(layer, *key, rank, stages))
                try:
                    runs[key].append(check(layer, worker.run(path, peer, rank, seed)))
                except ArithmeticError as reason:
                    row["failures"].append(f"seed {seed}: {reason}")
    for key, results in runs.items():
        if results:
            seconds, kernels, outputs = zip(*results, strict=True)
            errors = [layer.output_error(one) for one in outputs]
            rows[key] |= spread(seconds)
            rows[key]["output_error"] = statistics.median(errors)
            rows[key]["output_error_range"] = [min(errors), max(errors)]
            rows[key]["weight_error"] = statistics.median(map(layer.weight_error, kernels))
    return list(rows.values())


def main() -> None:
    """Compare on all layers, then write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", required=True, help="python of the peers' environment")
    parser.add_argument("--checkpoint", type=Path, help="ResNet-20 on CIFAR-10")
    parser.add_argument("--images", type=Path, help="a training file of CIFAR-10, .npz")
    parser.add_argument("--calibration", type=int, default=1000, help="images")
    parser.add_argument("--held-out", type=int, default=64, help="images")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "peers" / "results.json")
    options = parser.parse_args()
    if (options.checkpoint is None) != (options.images is None):
        parser.error("--checkpoint and --images go together")

    torch.set_num_threads(1)
    started, begin, load = datetime.now(UTC), time.perf_counter(), os.getloadavg()
    sizes = (options.calibration, options.held_out, options.seed)
    layers = synthetic(*sizes)
    if options.checkpoint:
        layers = chain(resnet20(options.checkpoint, options.images, *sizes), layers)
    console, rows = Console(stderr=True), []
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        worker = Worker(options.peers, Path(folder))
        for layer in layers:
            rows += compare(layer, worker, options)
            console.print(f"{time.perf_counter() - begin:7.1f} s  {layer.group} {layer.spec.name}")
        worker.close()
    run = {
        "started": started.isoformat(timespec="seconds"),
        "minutes": (time.perf_counter() - begin) / 60,
        "load_start": load,
        "load_end": os.getloadavg(),
        "threads": 1,
        "repeats": options.repeats,
        "seed": options.seed,
        "calibration": options.calibration,
        "held_out": options.held_out,
        "environment": environment(),
        "peers": worker.versions,
    }
    results = {"run": run, "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_readme(results, options.out.with_name("README.md"))


if __name__ == "__main__":
    main()
