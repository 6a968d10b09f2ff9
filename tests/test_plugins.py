"""A runtime and a method of somebody else, a file each: no other change makes them known."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

TESTS = Path(__file__).parent
COMMAND = (
    "import sleeping, copying, hurrying; hurrying.hurry(); from factorize.cli import main; main()"
)


def ran(folder: Path, *arguments: str) -> str:
    """What a fresh process that knows where the plugins lie puts out."""
    path = os.pathsep.join(map(str, (TESTS / "plugins", TESTS, TESTS.parent)))
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_help_names_them(tmp_path: Path) -> None:
    text = ran(tmp_path, "-c", COMMAND, "--help-all")
    assert "copying: the first R filters, copied, then 1x1" in text
    [target] = re.findall(r"--target +NAME\S+ +(.*)\. Default", text)
    assert {"onnxruntime", "sleeping", "torch-cpu"} < {*target.split(" | ")}
    assert re.search(r"--method +NAME .*\| copying \|", text)


def test_a_plugin_is_an_option_too(tmp_path: Path) -> None:
    file = str(TESTS / "plugins" / "copying.py")
    digits = ("digits", "--plugin", file, "--method", "copying", "--rank", "8", "--dry-run")
    assert "copying 8" in ran(tmp_path, "-m", "factorize", *digits)


def test_a_search_chooses_by_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten())
    torch.save(net, tmp_path / "net.pt")
    arguments = (
        "net.pt", "--input-shape", "3,12,12", "--target", "sleeping", "--speedup", "1.1",
        "--method", "copying", "--dry-run",
    )  # fmt: skip
    text = ran(tmp_path, "-c", COMMAND, *arguments)
    [rank] = re.findall(r"16x16x3x3 +copying (\d+)", text)
    assert 1 <= int(rank) < 16


def test_they_keep_the_contracts(tmp_path: Path) -> None:
    files = [str(TESTS / name) for name in ("measure/test_runtimes.py", "methods/test_methods.py")]
    text = ran(
        TESTS.parent, "-m", "pytest", "-v", "-p", "sleeping", "-p", "copying",
        "-p", "no:cacheprovider", *files, "-k", "sleeping or copying",
    )  # fmt: skip
    passed = re.findall(r"(\w+)\.py::.*\b(sleeping|copying)\b.* PASSED", text)
    assert passed.count(("test_runtimes", "sleeping")) > 10
    assert passed.count(("test_methods", "copying")) > 5
    assert not re.search(r"\b(FAILED|ERROR|SKIPPED)\b", text)
