"""The command on an ONNX file: all that a module can have, and an ONNX file again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Ran
from onnx_files import apart, image, net, node, random, run, save

Command = Callable[..., Ran]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The net for images of one size."""
    path = net(tmp_path / "net.onnx")
    model = onnx.load(path)
    for dim, size in zip(
        model.graph.input[0].type.tensor_type.shape.dim[2:], (12, 14), strict=True
    ):
        dim.dim_value = size
    onnx.save(model, path)
    return path


def images(folder: Path) -> Path:
    """Noise with labels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (80, 12, 14, 3), np.uint8)
    np.savez(folder / "images.npz", images=pixels, labels=rng.integers(0, 10, 80))
    return folder / "images.npz"


def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize(
    "wish",
    [
        ("--rank", "4"),
        ("--energy", "0.8", "--fit", "weights"),
        ("--macs", "0.6", "--fit", "weights", "--target", "onnxruntime", "--threads", "1"),
    ],
)
def test_an_onnx_file_again(
    command: Command, tmp_path: Path, file: Path, wish: tuple[str, ...]
) -> None:
    ran = command(file, *wish, "--device", "cpu")
    assert ran.code == 0, ran.err
    out = tmp_path / "net-factorized"
    assert {path.name for path in out.iterdir()} == {
        "model.onnx", "model.safetensors", "plan.json", "report.json", "report.html", "run.toml",
    }  # fmt: skip
    told = report(out)
    assert told["model"] == "ONNX file net.onnx"
    assert told["onnx"]["max_rel"] < 1e-4
    assert told["onnx"]["free_axes"] == ["batch"]
    assert told["bytes"]["onnx"]["original"] == file.stat().st_size
    assert told["speed"][0]["runtime"] == "onnxruntime"
    assert {layer["name"] for layer in told["layers"]} >= {"first/Conv", "f"}
    x = image(2, 3, 12, 14)
    shapes = [[v.shape for v in run(path, x)] for path in (file, out / "model.onnx")]
    assert shapes[0] == shapes[1]


def test_a_dry_run_tells_the_nodes_names_and_a_plan_is_applied(
    command: Command, tmp_path: Path, file: Path
) -> None:
    ran = command(file, "--rank", "4", "--dry-run", "--include", "first/*", "--include", "block.*")
    assert ran.code == 0, ran.err
    assert "first/Conv" in ran.out
    assert "block.even" in ran.out
    assert not (tmp_path / "net-factorized").exists()
    assert command(file, "--rank", "4", "--fit", "weights", "--include", "f").code == 0
    first = (tmp_path / "net-factorized" / "model.onnx").read_bytes()
    ran = command(file, "--plan", "net-factorized/plan.json", "--fit", "weights", "--out", "again")
    assert ran.code == 0, ran.err
    assert (tmp_path / "again" / "model.onnx").read_bytes() == first


def test_fitted_to_images_reconstructed_and_tuned(
    command: Command, tmp_path: Path, file: Path
) -> None:
    """What a tuning moves is written too."""
    (tmp_path / "recipe.toml").write_text("epochs = 1\nlr = 0.001\nmay_stay = false\n")
    ran = command(
        file, "--rank", "4", "--include", "f", "--include", "block.even",
        "--data", images(tmp_path), "--reconstruct", "--recipe", "recipe.toml",
        "--device", "cpu",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    told = report(tmp_path / "net-factorized")
    assert told["finetuning"]["epochs_done"] == 1
    assert told["onnx"]["max_rel"] < 1e-4
    tensors = [{t.name: t.SerializeToString() for t in onnx.load(path).graph.initializer}
               for path in (file, tmp_path / "net-factorized" / "model.onnx")]  # fmt: skip
    assert tensors[0]["fc.weight"] != tensors[1]["fc.weight"]
    assert tensors[0]["plus"] == tensors[1]["plus"]  # no layer's


def test_calibrated_once_and_fitted_elsewhere(command: Command, tmp_path: Path, file: Path) -> None:
    common = "--include", "f", "--device", "cpu"
    assert command(file, "--rank", "4", *common, "--data", images(tmp_path), "--fit", "outputs",
                   "--save-calibration", "moments.safetensors").code == 0  # fmt: skip
    ran = command(file, "--rank", "6", *common, "--calibration", "moments.safetensors", "--force")
    assert ran.code == 0, ran.err
    assert report(tmp_path / "net-factorized")["onnx"]["max_rel"] < 1e-4


def test_data_beside_the_file_is_written_beside_the_result(
    command: Command, tmp_path: Path, file: Path
) -> None:
    (tmp_path / "weights").mkdir()
    onnx.save(
        onnx.load(file), file, save_as_external_data=True, location="weights/net.data",
        size_threshold=0,
    )  # fmt: skip
    ran = command(file, "--rank", "4", "--fit", "weights", "--include", "f")
    assert ran.code == 0, ran.err
    out = tmp_path / "net-factorized"
    assert (out / "weights" / "net.data").exists()
    assert "weights/net.data" in ran.out
    x = image(1, 3, 12, 14)
    assert apart(file, out / "model.onnx", x) < 1
    ran = command(file, "--rank", "4", "--fit", "weights", "--include", "f")
    assert "nothing is overwritten unasked" in ran.err


def test_a_result_runs_where_there_is_onnxruntime_alone(
    command: Command, tmp_path: Path, file: Path
) -> None:
    assert command(file, "--rank", "4", "--fit", "weights").code == 0
    code = (
        "import sys, numpy, onnxruntime as o; s = o.InferenceSession('net-factorized/model.onnx');"
        "y = s.run(None, {'x': numpy.zeros((2, 3, 12, 14), 'float32')})[0];"
        "assert y.shape == (2, 10), y.shape; assert not {'torch', 'factorize'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)


def test_several_inputs_by_name(command: Command, tmp_path: Path) -> None:
    weights = {"w": random(8, 4, 3, 3)}
    nodes = [node("Conv", "image w", "a", "conv"), node("Mul", "a mask", "y")]
    inputs = {"image": (1, 4, "H", "W"), "mask": (1, 1, "H1", "W1")}
    path = save(tmp_path / "two.onnx", nodes, weights, inputs=inputs)
    wish = "--rank", "2", "--allow-costlier", "--include", "conv"
    ran = command(path, *wish)
    assert ran.code == 2
    assert "the sizes of image, mask are not known. Give --input-shape" in ran.err
    ran = command(path, *wish, "--input-shape", "image=1x4x9x8,mask=1x1x7x6")
    assert ran.code == 0, ran.err
    assert "input image 4x9x8, mask 1x7x6" in ran.out
    assert command("digits", "--rank", "2", "--input-shape", "x=1x1x8x8").code == 2


@pytest.mark.parametrize("option", ["--opset=17", "--onnx-float16", "--input-names=a"])
def test_what_an_onnx_file_has_no_room_for(command: Command, file: Path, option: str) -> None:
    ran = command(file, "--rank", "4", option)
    assert ran.code == 2
    assert "an ONNX file keeps its own" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_a_size_that_is_not_known_is_asked_for(command: Command, tmp_path: Path) -> None:
    path = net(tmp_path / "net.onnx")
    ran = command(path, "--rank", "4")
    assert ran.code == 2
    assert "the shape of an input is not known. Give --input-shape" in ran.err
    assert command(path, "--rank", "4", "--input-shape", "3,9,8", "--dry-run").code == 0
