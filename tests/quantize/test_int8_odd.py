"""Odd nets and images: an int8 file that is right, or one clear line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx_files import node, random, run, save
from rounding_nets import conv_relu, made_net
from simulating import images_of, rounded, steps_apart

from factorize.errors import ExportError, OutputError
from factorize.quantize import quantize_onnx
from factorize.quantize import rounded_net as walk


def changed(path: Path, name: str, function: object) -> Path:
    """The file with one of its weights changed."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            array = numpy_helper.to_array(tensor).copy()
            function(array)  # type: ignore[operator]
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, path)
    return path


def distance(path: Path, out: Path, x: torch.Tensor) -> float:
    exact, rough = run(path, x)[0], run(out, x)[0]
    return float(np.linalg.norm(exact - rough) / np.linalg.norm(exact))


CHANGES = {
    "dead channel": ("w", lambda w: w.__setitem__(2, 0)),
    "dead input": ("v", lambda v: v.__setitem__((slice(None), 3), 0)),
    "all zeros": ("v", lambda v: v.fill(0)),
    "huge weight": ("w", lambda w: w.__setitem__((1, 2, 0, 0), 1e4)),
    "huge bias": ("b", lambda b: b.__setitem__(3, -1e6)),
    "tiny weights": ("w", lambda w: np.multiply(w, 1e-12, out=w)),
    "tiny channel": ("w", lambda w: w.__setitem__(2, w[2] * 1e-20)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_odd_weights(tmp_path: Path, change: str) -> None:
    path = changed(made_net(tmp_path / "net.onnx", "conv_relu"), *CHANGES[change])
    check = quantize_onnx(path, tmp_path / "int8.onnx", [images_of(path)])
    assert check.difference < 0.05 or change == "huge weight"
    assert check.difference == pytest.approx(check.simulated, rel=0.1, abs=1e-3)
    made, proto = rounded(path)
    apart = steps_apart(made, proto, images_of(path, 2, seed=1))
    assert max(apart[n] for n in made.grids) <= 1


@pytest.mark.parametrize("bias", [3e5, -3e5, 1e8])
def test_a_bias_larger_than_its_codes_leaves_the_others_as_they_are(
    tmp_path: Path, bias: float
) -> None:
    """A step of the weights' that has room for it is coarser, but of that channel alone."""
    nodes = [node("Gemm", "x w b", "y")]
    weights = {"w": random(7, 4, scale=1e-3), "b": np.array([0, bias, 0, 0], np.float32)}
    path = save(tmp_path / "net.onnx", nodes, weights, inputs={"x": ("N", 7)})
    x = images_of(path)["x"] * 1e-3
    quantize_onnx(path, tmp_path / "int8.onnx", [x])
    exact, rough = run(path, x)[0], run(tmp_path / "int8.onnx", x)[0]
    assert np.allclose(rough[:, 1], exact[:, 1], rtol=1e-6)
    others = [0, 2, 3]
    apart = np.linalg.norm(rough[:, others] - exact[:, others])
    assert apart < 0.02 * np.linalg.norm(exact[:, others])


def test_a_bias_with_little_room_scales_no_weight(tmp_path: Path) -> None:
    nodes = [node("Gemm", "x w b", "y")]
    weights = {"w": random(7, 4), "b": np.array([0, 1e8, 0, 0], np.float32)}
    path = save(tmp_path / "net.onnx", nodes, weights, inputs={"x": ("N", 7)})
    made, _ = rounded(path, {"x": images_of(path)["x"]})
    layer = made.layers["y"]
    apart = (layer.weight - torch.from_numpy(weights["w"].T)).abs().amax(1)
    assert bool((apart <= 0.5 * layer.scales + 0.1).all())


@pytest.mark.parametrize("name", ["conv_relu", "cp_chain", "gemms"])
@pytest.mark.parametrize("value", [0.7, 0.0, -3000.0])
def test_constant_images(tmp_path: Path, name: str, value: float) -> None:
    path, out = made_net(tmp_path / "net.onnx", name), tmp_path / "int8.onnx"
    x = torch.full_like(images_of(path)["x"], value)
    check = quantize_onnx(path, out, [x])
    assert check.difference < 0.05
    assert distance(path, out, x) < 0.05
    assert all(np.isfinite(loss) for loss in check.losses.values())


def test_one_image_bytes_doubles_and_empty_batches(tmp_path: Path) -> None:
    path, out = made_net(tmp_path / "net.onnx", "conv_relu"), tmp_path / "int8.onnx"
    x = images_of(path)["x"]
    assert quantize_onnx(path, out, [x[:0], x[:1]]).images == 1
    assert quantize_onnx(path, out, [(x.double(),)], force=True).images == 12
    assert quantize_onnx(path, out, [{"x": x}, x], force=True, images=20).images == 20
    assert quantize_onnx(path, out, iter([x] * 3), force=True, memory=5e4).images < 12


def test_images_that_cannot_be(tmp_path: Path) -> None:
    path, out = made_net(tmp_path / "net.onnx", "conv_relu"), tmp_path / "int8.onnx"
    x = images_of(path)["x"]
    for value in (float("nan"), float("inf"), 1e30):
        bad = x.clone()
        bad[2, 1, 4, 4] = value
        with pytest.raises(ExportError, match="x: must be numbers below 1e.15 to become int8"):
            quantize_onnx(path, out, [bad])
    for none in ([], [x[:0]]):
        with pytest.raises(ExportError, match="needs images to find the ranges of, got none"):
            quantize_onnx(path, out, none)
    with pytest.raises(ExportError, match="ONNX Runtime must run it on 1x2x9x10"):
        quantize_onnx(path, out, [x[:, :2]])
    for other in ((x, x), "images"):
        with pytest.raises(ExportError, match="a batch must have a tensor for each of x, got"):
            quantize_onnx(path, out, [other])
    assert not out.exists()


def test_files_that_cannot_be(tmp_path: Path) -> None:
    out, x = tmp_path / "int8.onnx", images_of(made_net(tmp_path / "net.onnx", "conv_relu"))
    old = made_net(tmp_path / "old.onnx", "conv_relu", opset=12)
    with pytest.raises(ExportError, match="must be float32, of opset 13 or later, got opset 12"):
        quantize_onnx(old, out, [x])
    nodes, weights, _ = conv_relu()
    for kind, dtype, told in (
        (TensorProto.FLOAT16, np.float16, "got float16"),
        (TensorProto.DOUBLE, np.float64, "got float64"),
    ):
        path = save(
            tmp_path / "other.onnx", nodes, {n: w.astype(dtype) for n, w in weights.items()},
            kind=kind,
        )  # fmt: skip
        with pytest.raises(ExportError, match=told):
            quantize_onnx(path, out, [x])
    none = save(tmp_path / "none.onnx", [node("Relu", "x", "y")], {})
    with pytest.raises(ExportError, match="layers that can be computed in integers, found none"):
        quantize_onnx(none, out, [x])
    with pytest.raises(ExportError, match="no such file"):
        quantize_onnx(tmp_path / "missing.onnx", out, [x])
    assert not out.exists()
    with pytest.raises(OutputError, match="exists already"):
        quantize_onnx(tmp_path / "net.onnx", tmp_path / "old.onnx", [x])


def test_a_file_that_does_not_do_what_was_simulated_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = made_net(tmp_path / "net.onnx", "conv_relu"), tmp_path / "int8.onnx"
    monkeypatch.setattr(walk.RoundedNet, "round_", lambda *_: None)
    monkeypatch.setattr(sys.modules["factorize.quantize.quantize_onnx"], "_SPREAD", 0.0)
    with pytest.raises(ExportError, match="must be as close to the float net as its simulation"):
        quantize_onnx(path, out, [images_of(path)])
    assert not out.exists()


@pytest.mark.parametrize("opset", [13, 17, 19, 21])
def test_opsets(tmp_path: Path, opset: int) -> None:
    path = made_net(tmp_path / "net.onnx", "residual", opset=opset, ir_version=8)
    check = quantize_onnx(path, tmp_path / "int8.onnx", [images_of(path)])
    assert check.difference < 0.05


def test_weights_without_moments_where_rows_are_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made_net(tmp_path / "net.onnx", "conv_relu")
    monkeypatch.setattr(walk, "LONGEST", 20)
    check = quantize_onnx(path, tmp_path / "int8.onnx", [images_of(path)])
    assert check.difference < 0.05


def test_the_same_again(tmp_path: Path) -> None:
    path, out = made_net(tmp_path / "net.onnx", "residual"), tmp_path / "int8.onnx"
    quantize_onnx(path, out, [images_of(path)])
    first = out.read_bytes()
    quantize_onnx(path, out, [images_of(path)], force=True)
    assert out.read_bytes() == first


def test_indices_stay_as_they_are(tmp_path: Path) -> None:
    nodes = [node("Gather", "table index", "e"), node("MatMul", "e w", "a"), node("Relu", "a", "r"),
             node("MatMul", "r v", "y")]  # fmt: skip
    weights = {"table": random(11, 8), "w": random(8, 6), "v": random(6, 3)}
    path = save(tmp_path / "net.onnx", nodes, weights, inputs={"index": ("N", 5)})
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(model, path)
    index = torch.randint(0, 11, (8, 5), generator=torch.Generator().manual_seed(0))
    for given in (index, {"index": index}):
        check = quantize_onnx(path, tmp_path / "int8.onnx", [given], force=True)
        assert check.difference < 0.02


def test_a_layer_that_reads_the_width_of_an_image_is_not_balanced(tmp_path: Path) -> None:
    """As many columns as channels: they are not the same."""
    nodes = [node("Conv", "x w", "a"), node("MatMul", "a v", "y")]
    weights = {"w": random(8, 3, 1, 1), "v": random(8, 5)}
    path = save(tmp_path / "net.onnx", nodes, weights, inputs={"x": ("N", 3, 6, 8)})
    check = quantize_onnx(path, tmp_path / "int8.onnx", [images_of(path)])
    assert check.difference < 0.05
    assert all(loss < 0.01 for loss in check.losses.values())
