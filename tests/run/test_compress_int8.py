"""int8 as a part of a run: what it delivers, tells, refuses, and leaves where it fails."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from compressing import X, net
from onnx_files import external, image, node, random, run, save, twin_of
from onnx_files import net as onnx_net
from torch import nn

import factorize
from factorize.errors import DataError, ExportError, FactorizeError
from factorize.export import OnnxConfig
from factorize.fit import FitConfig
from factorize.measure import Target
from factorize.report import load_report
from factorize.run import compress as whole
from factorize.run import in_integers, pipeline
from factorize.tune import FinetuneConfig

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning:torch|accelerate|onnxscript")]

FILES = {"model.safetensors", "plan.json", "model.onnx", "model.pt2", "report.json", "report.html"}


def images(count: int = 60) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return [*zip(x.split(10), (torch.arange(count) % 5).split(10), strict=True)]


def of_file() -> list[tuple[torch.Tensor]]:
    return [(x,) for x in image(40, 3, 9, 10).split(8)]


def compressed(model: nn.Module | None = None, x: Any = X, **how: Any) -> factorize.Result:
    how = {"rank": 4, "int8": "all", "latency": False, "device": "cpu", "data": images(), **how}
    return factorize.compress(model or net(), x, **how)


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def outputs(path: Path, x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(run(path, x)[0])


def apart(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).norm() / two.norm())


def check_speeds(report: factorize.Report) -> None:
    found = {(one.runtime, one.dtype, one.net) for one in report.speed}
    ours = {("onnxruntime", "int8", ""), ("onnxruntime", "float32", "in float32"),
            ("onnxruntime", "int8", "int8 alone")}  # fmt: skip
    assert ours <= found
    assert all(net == "in float32" for _, dtype, net in found - ours)
    assert report.measured is report.speed[0]
    assert (report.speed[0].dtype, report.speed[0].net) == ("int8", "")


@pytest.mark.parametrize("data", ["images", "made up"])
def test_a_run_delivers_int8_and_compares_it(tmp_path: Path, data: str) -> None:
    out = tmp_path / "out"
    real = data == "images"
    made = compressed(out=out, latency=real, threads=1, data=images() if real else None)
    report = made.report
    assert not report.failures
    assert {path.name for path in out.iterdir()} == FILES | {"scales.json"}
    assert "QuantizeLinear" in operators(out / "model.onnx")
    x = torch.cat([batch[0] for batch in images()])
    with torch.no_grad():
        far = 0.05 if real else 0.3  # those are noise, unlike what is made up
        assert apart(outputs(out / "model.onnx", x), made.model(x)) < far
    assert report.int8 is not None
    check, alone = report.int8["check"], report.int8["alone"]
    assert len(check["losses"]) == len(alone["losses"]) + 1  # a chain of two
    assert check["difference"] < 0.1
    assert report.onnx is not None
    assert report.onnx["bytes"] == (out / "model.onnx").stat().st_size
    assert report.bytes["onnx"]["compressed"] == report.onnx["bytes"]
    assert list(report.quality)[-2:] == ["int8 alone", "int8"]
    assert report.quality_now == report.quality["int8"]
    assert any("layers compute in integers" in note for note in report.notes)
    assert report.seconds["int8"] > 0
    if real:
        check_speeds(report)
    again = load_report(out / "report.json")
    assert again.int8 == json.loads((out / "report.json").read_text())["int8"]
    assert again.speed == report.speed
    assert again.quality.keys() == report.quality.keys()
    page = (out / "report.html").read_text()
    assert "int8 alone" in page
    scales = json.loads((out / "scales.json").read_text())
    assert set(scales["layers"]) == set(check["losses"])
    assert all(s > 0 and zero in range(256) for s, zero in scales["values"].values())


def test_nothing_is_written_where_no_folder_is_given_and_the_model_stays_in_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = twin_of(onnx_net(tmp_path / "net.onnx"), image())
    kept = copy.deepcopy(model.state_dict())
    made = compressed(model, image(), data=of_file(), include=["f"])
    assert made.report.int8 is not None
    assert [one.name for one in tmp_path.iterdir()] == ["net.onnx"]
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())
    assert all(w.dtype == torch.float32 for w in made.model.parameters())


def test_over_an_older_folder_and_back_to_float(tmp_path: Path) -> None:
    out = tmp_path / "out"
    twin = twin_of(onnx_net(tmp_path / "net.onnx"), image())
    how: dict[str, Any] = {"data": of_file(), "include": ["f"], "out": out}
    compressed(twin, image(), int8=False, **how)
    assert not (out / "scales.json").exists()
    compressed(twin, image(), force=True, **how)
    assert (out / "scales.json").exists()
    assert "QuantizeLinear" in operators(out / "model.onnx")
    compressed(twin, image(), int8=False, force=True, **how)
    assert not (out / "scales.json").exists()
    assert "QuantizeLinear" not in operators(out / "model.onnx")


def test_an_onnx_file_with_its_data_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = external(tmp_path / "net.onnx")
    twin = twin_of(path, image())
    made = compressed(
        twin, image(), data=of_file(), include=["f"], out=out, latency=True,
        target=Target("onnxruntime", threads=1),
    )  # fmt: skip
    assert {one.name for one in out.iterdir()} == FILES - {"model.pt2"} | {"scales.json"}
    assert {one.net for one in made.report.speed} == {"", "in float32", "int8 alone"}
    assert apart(outputs(out / "model.onnx", image()), outputs(path, image())) < 1
    assert made.report.int8 is not None
    assert "up" in made.report.int8["check"]["left"]
    assert any("up stayed in float32: the runtime has no" in note for note in made.report.notes)


@pytest.mark.parametrize(
    "how, told",
    [
        ({"onnx": OnnxConfig(opset=11)}, "opset 13 or later to become int8, got .*11"),
        ({"onnx": OnnxConfig(half=True)}, "got OnnxConfig"),
        ({"data": None, "fit": FitConfig("weights")}, "int8=True: needs images"),
        ({"model": net().double(), "x": X.double()}, "got float64"),
        ({"model": net().bfloat16(), "x": X.bfloat16()}, "got bfloat16"),
        ({"model": net().half(), "x": X.half()}, "got float16"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    how: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "cut_and_tune", lambda *_: pytest.fail("there was work"))
    with pytest.raises(FactorizeError, match=told) as caught:
        compressed(**how)
    assert "\n" not in str(caught.value)


def test_an_onnx_file_of_an_old_opset_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "cut_and_tune", lambda *_: pytest.fail("there was work"))
    twin = twin_of(onnx_net(tmp_path / "net.onnx", opset=12), image())
    with pytest.raises(ExportError, match="of opset 13 or later.* got opset 12"):
        compressed(twin, image(), data=of_file())


def test_images_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    data = images()
    data[2][0][:, 0, 3, 3] = float("nan")
    with pytest.raises(DataError) as caught:
        compressed(data=data, out=tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("which", ["alone.onnx", "model.onnx"])
def test_where_it_fails_the_float_net_is_delivered(
    tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where the original alone cannot be int8, only the comparison is missing."""
    real = in_integers.quantize_onnx

    def fails(source: Path, path: Path, *given: Any, **how: Any) -> Any:
        if path.name == which:
            raise ExportError(f"{path}: must be better, got worse. Not written.")
        return real(source, path, *given, **how)

    monkeypatch.setattr(in_integers, "quantize_onnx", fails)
    out = tmp_path / "out"
    twin = twin_of(onnx_net(tmp_path / "net.onnx"), image())
    made = compressed(twin, image(), data=of_file(), include=["f"], out=out,
                      latency=True, target=Target("onnxruntime", threads=1))  # fmt: skip
    whole_int8 = which == "alone.onnx"
    assert ("QuantizeLinear" in operators(out / "model.onnx")) == whole_int8
    assert (out / "scales.json").exists() == whole_int8
    assert (made.report.int8 is not None) == whole_int8
    assert made.report.speed
    if whole_int8:
        (note,) = [n for n in made.report.notes if "not compared in int8" in n]
        assert "alone.onnx: must be better" in note
        assert "int8 alone" not in made.report.quality
        assert {one.net for one in made.report.speed} == {"", "in float32"}
        load_report(out / "report.json")
    else:
        (failure,) = made.report.failures
        assert failure.startswith("model.onnx in int8, it stays in float32: model.onnx: must be")
        assert "int8" not in made.report.quality


def test_interrupted_it_leaves_the_float_net_and_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    twin = twin_of(onnx_net(tmp_path / "net.onnx"), image())
    how: dict[str, Any] = {"data": of_file(), "include": ["f"], "out": tmp_path / "out"}
    with monkeypatch.context() as patch:
        patch.setattr(in_integers, "quantize_onnx", stopped)
        with pytest.raises(KeyboardInterrupt):
            compressed(twin, image(), finetune=FinetuneConfig(1), **how)
    assert "QuantizeLinear" not in operators(tmp_path / "out" / "model.onnx")
    assert (tmp_path / "out" / "report.json").exists()
    made = compressed(twin, image(), finetune=FinetuneConfig(1, resume=True), **how)
    assert made.report.int8 is not None
    assert made.report.finetuning is not None
    assert "QuantizeLinear" in operators(tmp_path / "out" / "model.onnx")


def test_with_a_tuning_in_stages_that_goes_on(tmp_path: Path) -> None:
    twin = twin_of(onnx_net(tmp_path / "net.onnx"), image())
    how: dict[str, Any] = {
        "data": of_file(), "include": ["f"], "rank": 0.3, "stages": 2, "out": tmp_path / "out",
        "method": "tucker2", "allow_costlier": True,
    }  # fmt: skip
    made = compressed(twin, image(), finetune=FinetuneConfig(2), **how)
    assert made.report.finetuning is not None
    assert list(made.report.quality)[-2:] == ["int8 alone", "int8"]
    assert made.report.int8 is not None


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch(tmp_path: Path, batch: int) -> None:
    path = onnx_net(tmp_path / "net.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(model, path)
    made = compressed(
        twin_of(path, image()), image(), data=of_file(), include=["f"],
        out=tmp_path / "out",
    )  # fmt: skip
    assert not made.report.failures
    assert made.report.int8 is not None
    assert made.report.int8["check"]["images"] % batch == 0


def test_what_a_chain_cannot_be_either_is_told(tmp_path: Path) -> None:
    """A float net is delivered where no layer can be in integers."""
    nodes = [node("ConvTranspose", "x u", "y", "up")]
    path = save(tmp_path / "net.onnx", nodes, {"u": random(16, 8, 3, 3)},
                inputs={"x": ("N", 16, 9, 10)})  # fmt: skip
    x = image(1, 16, 9, 10)
    made = compressed(
        twin_of(path, x), x, data=[(v,) for v in image(40, 16, 9, 10).split(8)],
        allow_costlier=True, method="tucker2", include=["up"], out=tmp_path / "out",
    )  # fmt: skip
    assert made.report.int8 is not None
    assert "alone" not in made.report.int8
    (note,) = [n for n in made.report.notes if "not compared in int8" in n]
    assert "found none (up: the runtime has no integer ConvTranspose)" in note


@pytest.mark.parametrize("fails", [False, True])
def test_points_of_a_curve_are_rated_in_integers_where_they_can_be(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    real, rated = pipeline.worth_in_integers, []

    def worth(*given: Any) -> dict[str, float]:
        if fails:
            raise ExportError("model.onnx: must be better, got worse.")
        rated.append(real(*given))
        return rated[-1]

    monkeypatch.setattr(pipeline, "worth_in_integers", worth)
    made = compressed(
        rank=None, method="channel_svd", search=factorize.SearchConfig(shares=(0.6,)),
        target=Target("onnxruntime", threads=1),
    )  # fmt: skip
    points = [one.quality for one in made.report.curve if one.kind == "search"]
    assert len(points) == 1
    told = [note for note in made.report.notes if "rated in float32: model.onnx: must" in note]
    assert bool(told) == fails
    if not fails:
        assert all(point in rated for point in points)
