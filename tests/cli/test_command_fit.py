"""Fits on the command line: what is refused, what is only planned, what is interrupted."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Ran
from photographs import net, photographs

from factorize.cli import command as cli

# torch.export's own deprecations, and accelerate's on a machine without a GPU.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning:torch|accelerate|onnxscript")]


def prepare(folder: Path) -> tuple[str, ...]:
    """A model and images; the arguments that name them."""
    torch.save(net(), folder / "net.pt")
    pixels = (photographs() * 40 + 100).clamp(0, 255).to(torch.uint8).movedim(1, -1)
    np.savez(folder / "images.npz", images=pixels.numpy())
    (folder / "there.safetensors").write_text("mine")
    return "net.pt", "--rank", "3", "--input-shape", "3,16,16", "--device", "cpu"


WITH = ("--data", "images.npz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fit", "best"), "--fit must be one of weights, outputs, sequential, got 'best'"),
        (("--fit", "best", *WITH), "got 'best'"),
        (("--calibration-images", "1", *WITH), "--calibration-images"),
        (("--calibration-images", "many"), "--calibration-images"),
        (("--calibration-memory", "0", *WITH), "--calibration-memory"),
        (("--calibration-memory", "-1", *WITH), "--calibration-memory"),
        (("--calibration-memory", "nan", *WITH), "--calibration-memory"),
        (("--calibration", "there.safetensors"), "there.safetensors: the calibration must be"),
        (("--calibration", "missing.safetensors"), "missing.safetensors"),
        (
            ("--calibration", "there.safetensors", "--fit", "sequential", *WITH),
            "--fit outputs, got",
        ),
        (("--calibration", "there.safetensors", "--fit", "sequential"), "--fit outputs, got"),
        (("--calibration", "there.safetensors", "--fit", "weights"), "--fit outputs, got"),
        (("--calibration", "there.safetensors", "--reconstruct"), "--reconstruct needs images"),
        (
            ("--calibration", "there.safetensors", "--save-calibration", "new.safetensors", *WITH),
            "Leave one of them out",
        ),
        (("--save-calibration", "there.safetensors", *WITH), "there.safetensors: exists already"),
        (("--save-calibration", ".", "--force", *WITH), "exists already"),
        (("--save-calibration", "no/new.safetensors", *WITH), "the folder of the calibration"),
    ],
)
def test_bad_wish_is_one_line_and_leaves_nothing(
    command: Callable[..., Ran], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    base = prepare(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
    ran = command(*base, *arguments)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_dry_run_fits_nothing(command: Callable[..., Ran], tmp_path: Path) -> None:
    base = prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    wishes = ("--fit", "sequential", "--reconstruct", "--save-calibration", "new.safetensors")
    ran = command(*base, *WITH, *wishes, "--dry-run")
    assert (ran.code, ran.err) == (0, "")
    assert "spatial_svd 3" in ran.out
    assert "held" not in ran.out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("wish", "stage", "kept"),
    [
        ((), "factorize", set()),
        (("--fit", "outputs"), "calibrate", set()),
        (("--save-calibration", "new.safetensors"), "calibrate", set()),
        (("--save-calibration", "new.safetensors"), "factorize", {"new.safetensors"}),
    ],
)
def test_ctrl_c_during_the_fit_leaves_no_results(
    command: Callable[..., Ran],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wish: tuple[str, ...],
    stage: str,
    kept: set[str],
) -> None:
    def interrupt(_: object, now: str, *__: object) -> None:
        if now == stage:
            raise KeyboardInterrupt

    base, threads = prepare(tmp_path), threading.active_count()
    before = {path.name for path in tmp_path.rglob("*")}
    monkeypatch.setattr(cli.Bars, "update", interrupt)
    ran = command(*base, *WITH, *wish)
    assert ran.code == 130
    but = f" but {kept.copy().pop()}" if kept else ""
    assert ran.err.splitlines()[-1] == f"interrupted: nothing was written{but}"
    assert {path.name for path in tmp_path.rglob("*")} == before | kept
    assert threading.active_count() == threads
