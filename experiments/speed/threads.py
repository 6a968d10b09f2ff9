"""What ONNX Runtime's threads do while they wait, and what a speedup is measured to be by that.

    python experiments/speed/threads.py

resnet18 beside itself with `tucker2` at a third of the ranks, 1x3x224x224, random weights, 2
threads. "Alone" is what a program that runs one net sees: a session of its own, the runtime's
defaults, no other session alive. All others alternate the two nets. Writes threads.json and prints
its table.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torchvision

import factorize
from factorize.measure.environment import environment

HERE = Path(__file__).parent
THREADS, RUNS, WARMUP, ROUNDS = 2, 100, 20, 3
SETTINGS = {
    "sleep": {"session.intra_op.allow_spinning": "0"},
    "spin": {},
    "spin within runs (factorize)": {"session.force_spinning_stop": "1"},
}
Run = Callable[[], float]


def main() -> None:
    """Export both nets, time them in each way."""
    torch.manual_seed(0)
    model, x = torchvision.models.resnet18().eval(), torch.randn(1, 3, 224, 224)
    smaller = factorize.rewrite(model, factorize.make_plan(model, x, method="tucker2", rank=0.33))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("original.onnx", "smaller.onnx")]
        for net, file in zip((model, smaller), files, strict=True):
            factorize.export_onnx(net, x, file)
        rows = [{"threads": "spin, alone", **_summary(_alone(files, x.numpy()))}]
        for name, entries in SETTINGS.items():
            runs = [_run(file, x.numpy(), entries) for file in files]
            rows.append({"threads": name, **_summary(_alternately(runs))})
            del runs
    found = {"rows": rows, "environment": environment()}
    (HERE / "threads.json").write_text(json.dumps(found, indent=1) + "\n")
    print("| threads | original, ms | compressed, ms | speedup (p10..p90) |\n|---|---|---|---|")
    for row in rows:
        median, low, high = row["speedup"]
        print(
            f"| {row['threads']} | {row['original_ms']:.2f} | {row['compressed_ms']:.2f} | "
            f"{median:.2f}x ({low:.2f}..{high:.2f}) |"
        )


def _run(file: Path, x: np.ndarray, entries: dict[str, str]) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: x}

    def run() -> float:
        start = time.perf_counter()
        session.run(None, feeds)
        return 1e3 * (time.perf_counter() - start)

    return run


def _alone(files: list[Path], x: np.ndarray) -> np.ndarray:
    """One session after the other, and that several times."""
    times: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for file, column in zip(files, times, strict=True):
            run = _run(file, x, {})
            column += [run() for _ in range(WARMUP + RUNS)][WARMUP:]
            del run  # its threads end
    return np.array(times).T


def _alternately(runs: list[Run]) -> np.ndarray:
    pairs = [[run() for run in runs] for _ in range(WARMUP + ROUNDS * RUNS)]
    return np.array(pairs[WARMUP:])


def _summary(times: np.ndarray) -> dict[str, Any]:
    p10, median, p90 = np.percentile(times[:, 0] / times[:, 1], (10, 50, 90))
    original, compressed = np.median(times, 0)
    return {"original_ms": original, "compressed_ms": compressed, "speedup": [median, p10, p90]}


if __name__ == "__main__":
    main()
