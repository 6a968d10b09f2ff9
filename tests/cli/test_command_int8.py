"""--int8 on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Ran
from onnx_files import net

Command = Callable[..., Ran]
COMMON = ("--include", "f", "--device", "cpu", "--threads", "1")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = net(tmp_path / "net.onnx")
    model = onnx.load(path)
    sizes = model.graph.input[0].type.tensor_type.shape.dim[2:]
    for dim, size in zip(sizes, (12, 14), strict=True):
        dim.dim_value = size
    onnx.save(model, path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (80, 12, 14, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels, labels=rng.integers(0, 10, 80))
    return tmp_path / "images.npz"


def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_it_is_delivered_compared_told_and_made_again_over_it(
    command: Command, tmp_path: Path, file: Path, images: Path
) -> None:
    arguments = (file, "--rank", "4", "--data", images, "--int8", "all", *COMMON)
    ran = command(*arguments)
    assert ran.code == 0, ran.err
    out = tmp_path / "net-factorized"
    assert {path.name for path in out.iterdir()} == {
        "model.onnx", "model.safetensors", "plan.json", "report.json", "report.html", "run.toml",
        "scales.json",
    }  # fmt: skip
    told = report(out)
    assert [one["net"] for one in told["speed"]] == ["", "in float32", "int8 alone"]
    assert "layers compute in integers" in ran.out + ran.err
    assert "int8 alone" in ran.out
    assert "nothing is overwritten unasked" in command(*arguments).err
    ran = command(*arguments, "--force", "--seed", "1")
    assert ran.code == 0, ran.err
    assert report(out)["int8"]["check"]["images"] > 0


def test_it_goes_on_with_a_tuning_in_stages(
    command: Command, tmp_path: Path, file: Path, images: Path
) -> None:
    tuning = ("--finetune", "1", "--lr", "0.001", "--stages", "2")
    arguments = (
        file,
        "--rank",
        "0.3",
        "--allow-costlier",
        "--data",
        images,
        "--int8",
        "all",
        *tuning,
        *COMMON,
    )
    ran = command(*arguments)
    assert ran.code == 0, ran.err
    told = report(tmp_path / "net-factorized")
    assert told["finetuning"] is not None
    assert told["int8"] is not None


@pytest.mark.parametrize(
    "more, told",
    [
        (("--fit", "weights"), "--int8: needs images to find the ranges of, got none. Give --data"),
        (("--dry-run",), ""),
    ],
)
def test_what_it_needs(
    command: Command, tmp_path: Path, file: Path, more: tuple[str, ...], told: str
) -> None:
    ran = command(file, "--rank", "4", "--int8", "all", *more, *COMMON)
    assert ran.code == (2 if told else 0), ran.err
    assert told in ran.err.replace("\n", " ")
    assert not (tmp_path / "net-factorized").exists()


def test_an_old_opset_is_one_line(command: Command, tmp_path: Path) -> None:
    path = net(tmp_path / "old.onnx", opset=12)
    ran = command(path, "--rank", "4", "--int8", "--input-shape", "3,12,14", *COMMON)
    assert ran.code == 2
    assert len(ran.err.strip().splitlines()) == 1
    assert "of opset 13 or later" in ran.err


def test_all_may_be_left_out_and_nothing_else_may_follow(command: Command, file: Path) -> None:
    """Whatever comes after it is read as if it were not there."""
    ran = command(file, "--int8", "--rank", "4", "--dry-run", *COMMON)
    assert ran.code == 0, ran.err
    ran = command("--rank", "4", "--dry-run", *COMMON, "--int8", file)
    assert ran.code == 0, ran.err
    ran = command(file, "--rank", "4", "--dry-run", *COMMON, "--int8=some")
    assert ran.code == 2
    assert "--int8: must be by itself or followed by all, got some" in ran.err
