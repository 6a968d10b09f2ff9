"""A small run of the whole command, stopped by a signal at a named moment.

`fork` runs it in a child of a process that has imported everything: that takes no five seconds.
As a program, ``python interrupting.py MOMENT SIGNAL ARGUMENTS..``, it is a process like any other.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import forking
import numpy as np
import onnx
import torch
from hurrying import hurry
from safetensors.torch import load_file
from torch import nn

ARGUMENTS = (
    "net.pt", "--data", "images.npz", "--rank", "2", "--finetune", "3", "--lr", "0.001",
    "--batch-size", "32",
    "--calibration-images", "64", "--device", "cpu", "--threads", "1", "--out", "out",
)  # fmt: skip
_TESTS = Path(__file__).parents[1]
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(map(str, (_TESTS.parent, _TESTS, _TESTS / "run"))),
    "OMP_NUM_THREADS": "1",
}
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGKILL


@dataclass(frozen=True)
class Moment:
    """The ``nth`` call of a function with an argument that ends with ``named``.

    ``when``: before it, after it, or ``in`` it: while the file that it writes is half there.
    """

    name: str
    when: str
    function: str
    named: str = ""
    nth: int = 1


def _shown(stage: str, nth: int) -> tuple[str, str, str, int]:
    return "after", "factorize.cli.command:Bars.update", stage, nth


_CHECKPOINT = "out/finetune.ckpt"
_WRITE, _RENAME = "torch:save", "pathlib:Path.replace"
_SCORE = "factorize.tune.loop:holdout_scores"
MOMENTS = (
    Moment("data being read", "before", "factorize.cli.loading:load_data"),
    Moment("before the fit", "before", "factorize.run.pipeline:fit"),
    Moment("fit, between two layers", *_shown("factorize", 1)),
    Moment("batch-norm recalibration", *_shown("recalibrating", 2)),
    Moment("before the first score", "before", _SCORE),
    Moment("checkpoint 1 half written", "in", _WRITE),
    Moment("checkpoint 1, before its rename", "before", _RENAME, _CHECKPOINT),
    Moment("checkpoint 1, after its rename", "after", _RENAME, _CHECKPOINT),
    Moment("epoch 1, step 1", *_shown("fine-tuning", 1)),
    Moment("epoch 1, score", "before", _SCORE, nth=2),
    Moment("epoch 2, step 3", *_shown("fine-tuning", 22)),
    Moment("epoch 2, in a step", "before", "torch.optim:AdamW.step", nth=30),
    Moment("checkpoint 2 half written", "in", _WRITE, nth=2),
    Moment("checkpoint 2, before its rename", "before", _RENAME, _CHECKPOINT, 2),
    Moment("tuned model being rated", *_shown("evaluate finetuned", 1)),
    Moment("model.safetensors half written", "in", "factorize.export.weights:save_model"),
    Moment("ONNX export", "before", "torch.onnx:export"),
    Moment("model.onnx half written", "in", "onnx:save"),
    Moment("latency being measured", "before", "factorize.measure.pairs:_interleave"),
    Moment("outputs being published", "after", _RENAME, "out/plan.json"),
    Moment("outputs published, checkpoint there", "before", "pathlib:Path.unlink", _CHECKPOINT),
)


def strike_at(moment: Moment, number: int) -> None:
    """Let this process send itself the signal then."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    module, _, path = moment.function.partition(":")
    owner: Any = import_module(module)
    *inner, name = path.split(".")
    for part in inner:
        owner = getattr(owner, part)
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        due = any(str(one).endswith(moment.named) for one in args if isinstance(one, str | Path))
        calls += due or not moment.named
        due = (due or not moment.named) and calls == moment.nth
        if due and moment.when == "before":
            os.kill(os.getpid(), number)
        result = real(*args, **kwargs)
        if due and moment.when == "after":
            os.kill(os.getpid(), number)
        if due and moment.when == "in":
            file = next(Path(one) for one in args if isinstance(one, str | Path))
            whole = file.read_bytes()
            file.write_bytes(whole[: len(whole) // 2])
            os.kill(os.getpid(), number)
            file.write_bytes(whole)
        return result

    setattr(owner, name, wrapped)


@dataclass(frozen=True)
class Ended:
    """Exit code, minus the signal where that ended the process, and what was said."""

    code: int
    out: str
    err: str


def fork(folder: Path, *arguments: str, moment: Moment | None = None, number: int = 0) -> Ended:
    """Run the command in a folder."""
    child = forking.started(_child, folder, arguments, moment, number)
    child.join()
    assert child.exitcode is not None
    code = child.exitcode
    child.close()
    return Ended(code, *((folder.parent / name).read_text() for name in ("stdout", "stderr")))


def process(folder: Path, *arguments: str, moment: Moment, number: int) -> Ended:
    """Run the command in a folder, as a process of its own."""
    ran = subprocess.run(
        [sys.executable, __file__, str(MOMENTS.index(moment)), str(int(number)), *arguments],
        cwd=folder, capture_output=True, text=True,
        env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip
    return Ended(ran.returncode, ran.stdout, ran.stderr)


def _child(folder: Path, arguments: tuple[str, ...], moment: Moment | None, number: int) -> None:
    os.chdir(folder)
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder.parent / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    torch.set_num_threads(1)
    forking.hurry_here()
    if moment:
        strike_at(moment, number)
    sys.argv = ["factorize", *arguments]
    import_module("factorize.cli.command").main()


def prepare(folder: Path) -> None:
    """A net and images for it; nothing is random in what a run makes of them."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    colours, noise = draw.uniform(0, 1, (240, 1, 1, 3)), draw.uniform(0, 1, (240, 8, 8, 3))
    images = (255 * colours * noise).astype(np.uint8)
    np.savez(folder / "images.npz", images=images)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=1.0), nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12, momentum=1.0), nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(12, momentum=1.0), nn.Linear(12, 4),
    )  # fmt: skip
    with torch.no_grad():
        net(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)  # the statistics of these images
    torch.save(net.eval(), folder / "net.pt")


def damaged(folder: Path) -> list[str]:
    """The files of a run, what it has in work aside, that are not whole."""
    readers: dict[str, Callable[[Path], Any]] = {
        ".json": lambda path: json.loads(path.read_text()),
        ".safetensors": load_file,
        ".onnx": lambda path: onnx.checker.check_model(onnx.load(path)),
        ".pt2": torch.export.load,
        ".ckpt": lambda path: torch.load(path, weights_only=True)["state"],
        ".toml": lambda path: tomllib.loads(path.read_text()),
        ".html": lambda path: path.read_text().index("</html>"),
    }
    found = []
    for path in sorted(folder.glob("*")):
        if not path.name.startswith("."):
            try:
                readers[path.suffix](path)
            except Exception as error:
                found.append(f"{path.name}: {error!r:.80}")
    return found


def result(folder: Path) -> dict[str, Any]:
    """All that a run made, but for times and what was asked."""
    report = json.loads((folder / "report.json").read_text())
    finetuning = report["finetuning"]
    for name in ("seconds", "images_per_second"):
        del finetuning[name]
    for layer in report["layers"]:
        for name in [name for name in layer if name.startswith(("ms", "speedup", "seconds"))]:
            del layer[name]
    kept = ("model", "layers", "params", "macs", "quality", "recalibration", "failures")
    return {
        "files": sorted(path.name for path in folder.iterdir()),
        "weights": (folder / "model.safetensors").read_bytes(),
        "plan": (folder / "plan.json").read_text(),
        "finetuning": finetuning,
        **{name: report[name] for name in kept},
    }


def carried_on(folder: Path, stopped: Ended, number: int, whole: dict[str, Any]) -> list[str]:
    """What is wrong after an interruption, and after the run that goes on from it."""
    out = folder / "out"
    there = {path.name for path in out.iterdir()} if out.exists() else set[str]()
    wrong = damaged(out)
    code = -number if number == signal.SIGKILL else 128 + number
    if stopped.code != code:
        wrong.append(f"exit code {stopped.code}: {stopped.err[-300:]}")
    if number != signal.SIGKILL:
        if left := sorted(name for name in there if name.startswith(".")):
            wrong.append(f"left: {left}")
        told = [
            line
            for line in stopped.err.splitlines()
            if not line.startswith(("images: ", "input: ", "export", "measure latency"))
        ]
        if len(told) != 1 or not told[0].startswith("interrupted: "):
            wrong.append(f"said: {stopped.err[-300:]}")
        if ("--resume" in stopped.err) != ("finetune.ckpt" in there):
            wrong.append(f"said of {sorted(there)}: {stopped.err}")
    if "finetune.ckpt" in there or "report.json" not in there:
        how = ["--resume"] if "finetune.ckpt" in there else []
        ended = fork(folder, *ARGUMENTS, *how)
        if ended.code:
            return [*wrong, f"then exit code {ended.code}: {ended.err[-300:]}"]
    found = result(out)
    wrong += [f"{name} differs" for name in whole if found[name] != whole[name]]
    beside = {path.name for path in folder.iterdir()} - {"net.pt", "images.npz", "out"}
    return wrong + [f"left: {name}" for name in sorted(beside)]


if __name__ == "__main__":
    hurry()
    strike_at(MOMENTS[int(sys.argv[1])], int(sys.argv[2]))
    sys.argv[1:] = sys.argv[3:]
    runpy.run_module("factorize", run_name="__main__", alter_sys=True)
