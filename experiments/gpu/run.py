"""Speed on the GPU: the dense net against the compressed one, run alternately; random weights.

    PYTHONPATH=. python experiments/gpu/run.py --nets resnet18 --methods spatial_svd,tucker2

Rows are added to results.json one by one; what is there already for this GPU is not run again, so
that the work may be cut into several calls.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import factorize
from factorize import methods
from factorize.errors import FactorizeError
from factorize.measure import Target, runtimes, speedup
from factorize.measure.environment import environment

HERE = Path(__file__).parent
NETS = ("resnet18", "resnet50", "vgg16_bn")
METHODS = tuple(name for name in methods.names() if methods.get(name).searched)
MODES = ("eager", "compile", "cuda_graphs")
SIDE = 224
Row = dict[str, Any]


class Compiled(nn.Module):
    """A net under torch.compile without CUDA graphs, compiled where the timer has put its copy."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @functools.cached_property
    def call(self) -> Any:
        return torch.compile(self.net)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


class Results:
    """The rows of a file, each written as it comes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = json.loads(path.read_text()) if path.exists() else []

    def find(self, key: Row) -> Row | None:
        return next((row for row in self.rows if key.items() <= row.items()), None)

    def add(self, row: Row) -> None:
        self.rows.append({**row, "load": os.getloadavg()[0], "environment": environment()})
        lines = ",\n".join(json.dumps(one) for one in self.rows)
        self.path.write_text(f"[\n{lines}\n]\n")
        print(json.dumps(row), flush=True)


def main() -> None:
    """Read the arguments, do the runs that are missing."""
    options = arguments()
    if not torch.cuda.is_available():
        raise SystemExit("experiments/gpu needs a CUDA device that torch can use, found none.")
    results = Results(options.out)
    gpu = torch.cuda.get_device_name()
    for name in options.nets:
        model, x = build(name, "cuda")
        key = {"gpu": gpu, "net": name}
        for method in options.methods:
            for share in options.shares:
                run_share(results, {**key, "method": method, "macs": share}, model, x, options)
        for asked in options.speedups:
            run_search(results, {**key, "asked": asked}, model, x, options)


def arguments() -> argparse.Namespace:
    """What is to be run: a part of the whole, or all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])

    def listed(name: str, kind: Any, default: str) -> None:
        read = lambda text: [kind(one) for one in text.split(",") if one]  # noqa: E731
        parser.add_argument(name, type=read, default=default, help=f"default: {default}")

    listed("--nets", _one_of(NETS), ",".join(NETS))
    listed("--methods", _one_of((*METHODS, "auto")), ",".join(METHODS))
    listed("--shares", float, "0.5,0.35")
    listed("--speedups", float, "1.5")
    listed("--batches", int, "1,64")
    listed("--dtypes", _one_of(runtimes.dtypes()), "float32,bfloat16")
    listed("--modes", _one_of(MODES), ",".join(MODES))
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    return parser.parse_args()


def build(name: str, device: str) -> tuple[nn.Module, Tensor]:
    """A net with random weights, seed 0, and one image."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None).eval().to(device)
    return model, torch.randn(1, 3, SIDE, SIDE, device=device)


def run_share(
    results: Results, key: Row, model: nn.Module, x: Tensor, options: argparse.Namespace
) -> None:
    """Factorize a net to a share of its MACs, and time it in every setting that is missing."""
    missing = [setting for setting in settings(options)
               if not results.find({"kind": "time", **key, **setting})]  # fmt: skip
    known = results.find({"kind": "factorize", **key})
    if known and (not missing or "message" in known):
        return
    compressed, found = factorized(model, x, key["method"], key["macs"])
    if not known:
        results.add({"kind": "factorize", **key, **found})
    for setting in missing if compressed is not None else []:
        results.add({"kind": "time", **key, **setting, **timed(model, compressed, x, **setting)})


def factorized(
    model: nn.Module, x: Tensor, method: str, share: float
) -> tuple[nn.Module | None, Row]:
    """The net at a share of its MACs by one method, and what that took."""
    start = time.perf_counter()
    try:
        result = factorize.compress(
            model, x, budget=factorize.Budget(macs=share), method=method, latency=False,
            device=x.device.type,
        )  # fmt: skip
    except FactorizeError as error:
        return None, {"message": str(error), "seconds": time.perf_counter() - start}
    return result.model, costs(result)


def costs(result: factorize.Result) -> Row:
    """What is left of the net, and the seconds of the search, which fits the chains too."""
    report = result.report
    return {
        "macs_left": report.macs["compressed"] / report.macs["original"],
        "params_left": report.params["compressed"] / report.params["original"],
        "layers": dict(Counter(layer.method for layer in result.plan.factorized)),
        "seconds": report.seconds["search"],
        "threads": torch.get_num_threads(),
    }


def timed(
    model: nn.Module, compressed: nn.Module, x: Tensor, *, batch: int, dtype: str, mode: str
) -> Row:
    """Both nets in one setting, by the library's own timer."""
    target = Target("cuda", batch=batch, dtype=dtype, compiled=mode == "cuda_graphs")
    pair = [Compiled(net) if mode == "compile" else net for net in (model, compressed)]
    # Nothing compiled before counts: torch runs the ninth net of a class without compiling it, and
    # another batch than the last with kernels for any batch.
    torch.compiler.reset()
    torch.cuda.empty_cache()
    try:
        found = speedup(target, *pair, x)
    except torch.OutOfMemoryError as error:
        return {"message": str(error)}
    return {
        "speedup": [found.speedup, found.speedup_p10, found.speedup_p90],
        "original_ms": list(asdict(found.original).values()),
        "compressed_ms": list(asdict(found.compressed).values()),
        "pairs": found.runs,
        "tf32": torch.backends.cudnn.allow_tf32,
    }


def run_search(
    results: Results, key: Row, model: nn.Module, x: Tensor, options: argparse.Namespace
) -> None:
    """The fastest chains by measured time: what `--target cuda --speedup S` does."""
    for setting in settings(options):
        row = {"kind": "search", **key, **setting}
        if setting["mode"] != "compile" and not results.find(row):  # no target of the library
            results.add({**row, **searched(model, x, key["asked"], **setting)})


def searched(
    model: nn.Module, x: Tensor, speedup: float, *, batch: int, dtype: str, mode: str
) -> Row:
    """One search in one setting; the fitted net is timed once more, as the others are."""
    target = Target("cuda", batch=batch, dtype=dtype, compiled=mode == "cuda_graphs")
    start = time.perf_counter()
    try:
        result = factorize.compress(
            model, x, budget=factorize.Budget(speedup=speedup), method="auto", target=target,
            latency=False, device=x.device.type,
        )  # fmt: skip
    except (FactorizeError, torch.OutOfMemoryError) as error:
        return {"message": str(error), "seconds": time.perf_counter() - start}
    search = result.report.search
    assert search is not None
    return {
        **costs(result),
        **timed(model, result.model, x, batch=batch, dtype=dtype, mode=mode),
        "predicted": search.predicted_ms["original"] / search.predicted_ms["compressed"],
        "chains_timed": search.chains_timed,
        "chains_cached": search.chains_cached,
    }


def settings(options: argparse.Namespace) -> list[Row]:
    """Every way to run a net."""
    return [{"batch": batch, "dtype": dtype, "mode": mode}
            for mode in options.modes for dtype in options.dtypes
            for batch in options.batches]  # fmt: skip


def _one_of(known: tuple[str, ...]) -> Any:
    def checked(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"must be of {', '.join(known)}, got {text!r}")
        return text

    return checked


if __name__ == "__main__":
    main()
