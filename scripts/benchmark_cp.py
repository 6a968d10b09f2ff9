"""Error, component norms and time of the CP solver, beside the solvers it was chosen over.

- race: the relative error that each solver has after so many seconds, from one start: plain ALS and
  penalised ALS (both with extrapolated steps, float64), Levenberg-Marquardt with 10 and with 30
  preconditioned conjugate-gradient steps to each of its own.
- correction: plain ALS left to degenerate, then `correct`.
- fits: `cp` as the package calls it.
- own process: the 512x512x3x3 kernel in a fresh process, its time and peak resident memory.

Writes results.json. Kernels of the real networks are skipped, loudly, where --models is missing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from factorize.tensor.cp import cp
from factorize.tensor.cp_als import als, balance, correct, intensity, residual

RESULTS = Path(__file__).parents[1] / "experiments" / "cp" / "results.json"
Solver = Callable[[Tensor, list[Tensor], int], list[Tensor]]


def peak_gib() -> float:
    """Peak resident memory so far; getrusage's would be the parent's, where that is more."""
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) / 2**20


def gauss(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, the hardest kernel to compress."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def matrix_product(n: int) -> Tensor:
    """The bilinear map of two n x n matrices."""
    tensor = torch.zeros(n * n, n * n, n * n, dtype=torch.float64)
    for i, j, k in itertools.product(range(n), repeat=3):
        tensor[i * n + j, j * n + k, k * n + i] = 1
    return tensor


def border(n: int, terms: int, noise: float) -> Tensor:
    """A sum of ``aab + aba + baa``, of rank 3 and border rank 2 each, and noise."""
    tensor = torch.zeros(n, n, 9, dtype=torch.float64)
    for term in range(terms):
        a, b = ([gauss(m, seed=10 * term + s + i) for i, m in enumerate((n, n, 9))] for s in (0, 5))
        for mode in range(3):
            tensor += torch.einsum("i,j,k->ijk", *(b[m] if m == mode else a[m] for m in range(3)))
    rest = gauss(n, n, 9, seed=999)
    return tensor + noise * tensor.norm() * rest / rest.norm()


def kernels(models: Path) -> dict[str, tuple[Tensor, int]]:
    """Tensors (O, I, 9) and others, normalised, and the rank each is fitted at."""
    cases = {
        "border rank 8 of 32x32x9, noise 0.1, R 8": (border(32, 4, 0.1), 8),
        "border rank 8 of 16x16x9, noise 1, R 20": (border(16, 4, 1.0), 20),
        "matrix product 2x2x2, R 7": (matrix_product(2), 7),
        "matrix product 3x3x3, R 20": (matrix_product(3), 20),
        "matrix product 3x3x3, R 23": (matrix_product(3), 23),
        "normal 64x64x9, R 134": (gauss(64, 64, 9), 134),
        "normal 128x128x9, R 278": (gauss(128, 128, 9), 278),
    }
    file = models / "resnet20-12fca82f.th"
    if not file.exists():
        print(f"SKIPPED: ResNet-20's kernels: there is no {file}", file=sys.stderr)
    else:
        state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
        for layer in ("layer1.0.conv1", "layer2.1.conv1", "layer3.0.conv1", "layer3.1.conv1"):
            kernel = state[f"module.{layer}.weight"].double().flatten(2)
            half = kernel.numel() // (2 * sum(kernel.shape))  # half of the MACs, at stride 1
            cases[f"ResNet-20 {layer}, R {half}"] = (kernel, half)
    return {name: (tensor / tensor.norm(), rank) for name, (tensor, rank) in cases.items()}


def start(tensor: Tensor, rank: int, seed: int) -> list[Tensor]:
    """Five sweeps of plain ALS from normal numbers: where every solver of a race starts."""
    factors = [gauss(n, rank, seed=100 * seed + mode) for mode, n in enumerate(tensor.shape)]
    return plain(tensor, factors, 5)


def plain(tensor: Tensor, factors: list[Tensor], steps: int) -> list[Tensor]:
    """ALS without penalty; a tolerance below zero never stops it."""
    return als(tensor, factors, -1.0, steps, share=0.0, ridge=0.0)[1]


def penalised(tensor: Tensor, factors: list[Tensor], steps: int) -> list[Tensor]:
    """As `cp` does it: heavily, then lightly."""
    root, factors = als(tensor, factors, -1.0, (steps + 1) // 2, share=1.0)
    ridge = 0.01 * root**2
    return als(tensor, factors, -1.0, steps // 2, share=0.01, ridge=ridge)[1]


def levenberg_marquardt(inner: int) -> Solver:
    """Damped Gauss-Newton; each step by conjugate gradients on the structured normal equations."""

    def dot(a: list[Tensor], b: list[Tensor]) -> float:
        return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))

    def solve(tensor: Tensor, factors: list[Tensor], steps: int) -> list[Tensor]:
        factors, modes = list(balance(factors)), range(3)
        unfolded = [tensor.movedim(m, 0).flatten(1).contiguous() for m in modes]
        now, damping, growth = residual(tensor, factors), 0.0, 2.0
        for _ in range(steps):
            others = [[f for n, f in enumerate(factors) if n != m] for m in modes]
            products = [
                unfolded[m] @ (a.unsqueeze(1) * b).flatten(0, 1) for m, (a, b) in enumerate(others)
            ]
            own = [f.T @ f for f in factors]
            grams = [reduce(torch.mul, [own[n] for n in modes if n != m]) for m in modes]
            damping = damping or 0.1 * float(grams[0].diagonal().mean())
            slope = [p - f @ g for p, f, g in zip(products, factors, grams, strict=True)]
            eye = torch.eye(len(grams[0]), dtype=tensor.dtype)
            blocks = [
                torch.cholesky_inverse(torch.linalg.cholesky(g + damping * eye)) for g in grams
            ]

            def normal(d: list[Tensor], grams=grams, own=own, factors=factors) -> list[Tensor]:
                cross = [x.T @ f for x, f in zip(d, factors, strict=True)]
                mixed = [sum(own[3 - m - n] * cross[n] for n in modes if n != m) for m in modes]
                return [x @ g + f @ c for x, g, f, c in zip(d, grams, factors, mixed, strict=True)]

            step = [torch.zeros_like(f) for f in factors]
            rest = slope
            search = solved = [r @ b for r, b in zip(rest, blocks, strict=True)]
            first = size = dot(rest, solved)
            for _ in range(inner):
                image = [y + damping * x for x, y in zip(search, normal(search), strict=True)]
                length = size / dot(search, image)
                step = [s + length * x for s, x in zip(step, search, strict=True)]
                rest = [r - length * y for r, y in zip(rest, image, strict=True)]
                solved = [r @ b for r, b in zip(rest, blocks, strict=True)]
                size, last = dot(rest, solved), size
                if size < 1e-4 * first:
                    break
                search = [z + size / last * x for z, x in zip(solved, search, strict=True)]
            trial = [f + s for f, s in zip(factors, step, strict=True)]
            then = residual(tensor, trial)
            expected = 2 * dot(slope, step) - dot(step, normal(step))
            if then < now:
                gain = (now - then) / max(expected, 1e-300)
                damping, growth = damping * max(1 / 3, 1 - (2 * gain - 1) ** 3), 2.0
                factors, now = list(balance(trial)), then
            else:
                damping, growth = damping * growth, growth * 2
            if damping > 1e12:
                break
        return factors

    return solve


SOLVERS: dict[str, Solver] = {
    "plain ALS": plain,
    "penalised ALS": penalised,
    "LM, 10 CG": levenberg_marquardt(10),
    "LM, 30 CG": levenberg_marquardt(30),
}


def figures(tensor: Tensor, factors: list[Tensor] | tuple[Tensor, ...]) -> tuple[float, float]:
    """Relative error, and intensity over the tensor's squared norm."""
    return residual(tensor, factors) ** 0.5, intensity(factors)


def timed(work: Callable[[], list[Tensor] | tuple[Tensor, ...]]) -> tuple[float, tuple]:
    """Seconds, and what was made."""
    began = time.perf_counter()
    made = work()
    return time.perf_counter() - began, tuple(made)


def race(tensor: Tensor, rank: int, seeds: list[int], limits: list[float]) -> dict[str, list[dict]]:
    """The error by each solver at each limit: of the longest run, of 2^k steps, that kept it."""
    rows: dict[str, list[dict]] = {}
    for name, solver in SOLVERS.items():
        reached: list[list[tuple[float, float]]] = [[] for _ in limits]
        for seed in seeds:
            begin, steps, seconds, runs = start(tensor, rank, seed), 1, 0.0, []
            while seconds < limits[-1] and steps <= 2**17:  # an exact fit returns at once
                seconds, made = timed(lambda b=begin, s=steps, f=solver: f(tensor, list(b), s))
                runs.append((seconds, *figures(tensor, made)))
                steps *= 2
            for place, limit in zip(reached, limits, strict=True):
                kept = [run[1:] for run in runs if run[0] <= limit]
                place.append(kept[-1] if kept else figures(tensor, begin))
        rows[name] = [
            {
                "seconds": limit,
                "errors": [e for e, _ in place],
                "intensities": [i for _, i in place],
            }
            for limit, place in zip(limits, reached, strict=True)
        ]
    return rows


def correction(tensor: Tensor, rank: int, seeds: list[int], sweeps: int) -> list[dict]:
    """Plain ALS for so many sweeps, then its correction."""
    rows = []
    for seed in seeds:
        begin = start(tensor, rank, seed)
        fit_s, fitted = timed(lambda b=begin: plain(tensor, list(b), sweeps))
        correct_s, corrected = timed(lambda f=fitted: correct(tensor, balance(f)))
        error, before = figures(tensor, balance(fitted))
        after_error, after = figures(tensor, corrected)
        rows.append(
            {"sweeps": sweeps, "seed": seed, "plain_s": fit_s, "correct_s": correct_s}
            | {"error_before": error, "error_after": after_error}
            | {"intensity_before": before, "intensity_after": after, "fall": before / after}
        )
    return rows


def fits(tensor: Tensor, rank: int, seeds: list[int]) -> list[dict]:
    """What the package does by default."""
    rows = []
    for seed in seeds:
        seconds, factors = timed(lambda s=seed: cp(tensor, rank, seed=s))
        error, size = figures(tensor, factors)
        rows.append({"seed": seed, "seconds": seconds, "error": error, "intensity": size})
    return rows


def own(rank: int) -> dict[str, float]:
    """In a fresh process: the kernel of 512 outputs and inputs."""
    imported = peak_gib()
    tensor = gauss(512, 512, 9)
    seconds, factors = timed(lambda: cp(tensor, rank, seed=0))
    peak = peak_gib()
    error, size = figures(
        tensor / tensor.norm(), tuple(f / tensor.norm() ** (1 / 3) for f in factors)
    )
    memory = {"imports_gib": imported, "peak_gib": peak}
    return {"rank": rank, "seconds": seconds, "error": error, "intensity": size} | memory


def main() -> None:
    """Everything, into one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("../shared/data/models"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--own", type=int, help="internal: the fresh process, at this rank")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.own:
        print(json.dumps(own(options.own)))
        return
    seeds = list(range(options.seeds))
    result: dict = {
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "threads": options.threads,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "seeds": seeds,
        "load_average": os.getloadavg()[0],
        "kernels": {},
        "own_process": [],
    }
    for name, (tensor, rank) in kernels(options.models).items():
        limits = [0.1, 0.3, 1.0] if tensor.numel() < 1e5 else [0.3, 1.0, 3.0]
        row = {"fits": fits(tensor, rank, seeds), "race": race(tensor, rank, seeds, limits)}
        row["correction"] = correction(tensor, rank, seeds, 300)
        if tensor.numel() < 2e4:
            row["correction"] += correction(tensor, rank, seeds, 2000)
        result["kernels"][name] = row
        falls = [round(r["fall"], 1) for r in row["correction"]]
        last = {k: round(median(v[-1]["errors"]), 5) for k, v in row["race"].items()}
        print(name, "race", last, "falls", falls, flush=True)
    for rank in (512, 1141):
        command = [sys.executable, __file__, "--own", str(rank), "--threads", str(options.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        result["own_process"].append(json.loads(done.stdout))
        print(result["own_process"][-1], flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    partial = options.out.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(options.out)


if __name__ == "__main__":
    main()
