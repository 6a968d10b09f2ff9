"""What OpenVINO has of its own, beside the contract of runtimes."""

from __future__ import annotations

import sys
from math import isfinite
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from factorize import export
from factorize.errors import DeviceError, ExportError
from factorize.measure import Target, runtimes, speedup
from factorize.measure.environment import usable_cores
from factorize.measure.runtimes import onnx_files
from factorize.measure.runtimes import openvino as of_openvino
from factorize.spec import ConvSpec

ov = pytest.importorskip("openvino")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
THROUGHPUT = ("PERFORMANCE_HINT=THROUGHPUT", "NUM_STREAMS=2")  # which such a net would not get
CHAIN = (ConvSpec("", "conv2d", 4, 4, (3, 3), (1, 1), (1, 1), (1, 1)),)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("net") / "model.onnx"
    export.export_onnx(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), X, file)
    return file


@pytest.mark.skipif(usable_cores() < 2, reason="one core has one stream")
def test_requests_at_once_are_timed_for_each(net: Path) -> None:
    target = Target("openvino", threads=2, options=THROUGHPUT)
    latency = Target("openvino", threads=2)
    assert target.context() != latency.context()
    counts = [
        of_openvino._compiled(net, one, X)[0].get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        for one in (latency, target)
    ]
    assert counts == [1, 2]
    [run] = runtimes.get("openvino").chain_runs(target, [CHAIN], (6, 5))
    assert run is not None
    assert 0 < run() < 1e3
    assert speedup(target, net, net, X, runs=1).runtime == f"openvino ({', '.join(THROUGHPUT)})"


def test_it_computes_in_what_the_target_says(net: Path) -> None:
    """Left alone it takes bfloat16 where the processor has that."""
    compiled, _ = of_openvino._compiled(net, Target("openvino", threads=1), X)
    assert "32" in str(compiled.get_property("INFERENCE_PRECISION_HINT"))
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_a_net_has_the_sizes_of_its_input(net: Path) -> None:
    for batch in (1, 3):
        compiled, [x] = of_openvino._compiled(net, Target("openvino"), X.repeat(batch, 1, 1, 1))
        assert tuple(compiled.input(0).shape) == x.shape == (batch, 3, 8, 8)


def test_the_cpu_is_the_usual_device() -> None:
    assert Target("openvino:CPU", threads=1) == Target("openvino", threads=1)
    with pytest.raises(DeviceError, match="the device must be one of CPU.*, got TPU. "):
        Target("openvino:TPU")


def test_a_dtype_that_the_device_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Core:
        available_devices = ("NPU",)

        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP16", "INT8"]

    monkeypatch.setattr(of_openvino, "_core", Core)
    with pytest.raises(DeviceError) as error:
        Target("openvino:NPU")
    assert str(error.value) == (
        "target openvino: NPU computes in float16, int8, got float32. Choose one of them."
    )
    assert Target("openvino:NPU", dtype="float16").on == "NPU"


def test_outputs_are_compared_with_those_of_onnxruntime(
    net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, runtime = Target("openvino", threads=1), runtimes.get("openvino")
    [told] = runtime.remarks(target, net, X)
    assert "threads of the 9999 asked for" in runtime.remarks(Target("openvino", 9999), net, X)[1]
    assert told.startswith("model.onnx on openvino, 1 thread, batch 1 puts out what ONNX Runtime")
    assert isfinite(apart := float(told.rpartition(" ")[2]))
    assert apart < 1e-4
    monkeypatch.setitem(onnx_files.TOLERANCES, "float32", -1.0)
    with pytest.raises(ExportError, match=r"^model.onnx: its outputs on openvino, 1 thread, batch"):
        runtime.remarks(target, net, X)


def test_a_net_that_it_does_not_take_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no net")
    with pytest.raises(ExportError, match=r"^model.onnx: cannot be run on openvino, 1 thread"):
        runtimes.get("openvino").remarks(Target("openvino", threads=1), tmp_path / "model.onnx", X)


def test_without_the_package_it_is_no_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_openvino, "package_version", lambda _: None)
    with pytest.raises(DeviceError) as error:
        Target("openvino")
    assert str(error.value) == (
        "target openvino needs the package openvino, found none: pip install 'factorize[openvino]'."
    )
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr("factorize.export.openvino_files.find_spec", lambda _: None)
    with pytest.raises(ExportError, match=r"^--openvino-xml: needs the package openvino"):
        export.check_openvino()


def test_its_own_form_puts_out_the_same(net: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(net.read_bytes())
    export.write_openvino(file)
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", *export.OPENVINO_FILES}
    core = ov.Core()
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    ours, theirs = (
        core.compile_model(core.read_model(one), "CPU", hint)([X.numpy()])[0]
        for one in (tmp_path / "model.xml", file)
    )
    assert np.array_equal(ours, theirs)
    assert any(abs(ours).ravel() > 0)


def test_a_file_without_that_form_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no net")
    with pytest.raises(ExportError, match=r"^model.xml: OpenVINO does not take model.onnx"):
        export.write_openvino(tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
