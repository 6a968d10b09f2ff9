"""The whole, as a library: compress, save, load, and what the report says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressing import X, net
from torch import nn

import factorize
from factorize.errors import (
    DeviceError,
    ModelLoadError,
    NoConvolutionError,
    OutputError,
    RankError,
    UnsupportedLayerError,
)
from factorize.measure import Target, count
from factorize.measure.runtimes.cuda import Cuda
from factorize.report import load_report
from factorize.run.targets import timed_on
from factorize.system.signals import Terminated
from factorize.types import Speedup

# torch.export's own deprecations, and accelerate's on a machine without a GPU.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning:torch|accelerate|onnxscript")]


class Unexportable(nn.Module):
    """Its way depends on its input, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.net(x)
        return y if float(y.sum()) > 1e9 else -y


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[factorize.Result, Path]:
    out = tmp_path_factory.mktemp("run") / "out"
    return factorize.compress(net(), X, rank=4, fit=factorize.FitConfig("weights"), out=out), out


def test_all_files_are_written_and_no_other(run: tuple[factorize.Result, Path]) -> None:
    names = {
        "model.safetensors", "plan.json", "model.onnx", "model.pt2", "report.json", "report.html",
    }  # fmt: skip
    assert {path.name for path in run[1].iterdir()} == names


def test_loaded_model_is_the_compressed_one(run: tuple[factorize.Result, Path]) -> None:
    result, out = run
    torch.manual_seed(9)
    loaded = factorize.load(out, net().apply(lambda m: getattr(m, "reset_parameters", int)()))
    with torch.no_grad():
        assert torch.equal(loaded(X), result.model(X))


def test_exported_files_give_the_models_outputs(run: tuple[factorize.Result, Path]) -> None:
    import onnxruntime

    result, out = run
    x = torch.randn(5, *X.shape[1:])
    with torch.no_grad():
        expected = result.model(x)
        program = torch.export.load(out / "model.pt2").module()
        assert torch.allclose(program(x), expected, atol=1e-5)
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(actual), expected, atol=1e-5)


def test_report_agrees_with_the_model_and_with_its_file(
    run: tuple[factorize.Result, Path],
) -> None:
    result, out = run
    report = result.report
    assert (report.params["compressed"], report.macs["compressed"]) == count(result.model, X)[:2]
    assert (report.params["original"], report.macs["original"]) == count(net(), X)[:2]
    before, after = (sum(getattr(one, key) for one in report.layers)
                     for key in ("macs_original", "macs"))  # fmt: skip
    assert report.macs["original"] - report.macs["compressed"] == before - after
    kernel = net()[3].weight
    chain = result.model[3]
    with torch.no_grad():
        product = torch.einsum("riyb,orax->oiyx", chain[0].weight, chain[1].weight)
        if report.layers[1].variant == "horizontal_first":
            product = torch.einsum("riax,oryb->oiyx", chain[0].weight, chain[1].weight)
        error = float((product - kernel).norm() / kernel.norm())
    assert report.layers[1].error == pytest.approx(error, rel=1e-4)
    assert report.quality["rewritten"]["agreement"] <= 100
    assert "random input" in report.quality_of

    saved = json.loads((out / "report.json").read_text())
    assert saved["format"] == "factorize-report"
    assert saved["macs"] == report.macs
    assert saved["layers"][1]["error"] == report.layers[1].error
    assert saved["bytes"]["onnx"]["compressed"] == (out / "model.onnx").stat().st_size
    speeds = [Speedup(**one) for one in saved["speed"]]
    assert [one.runtime for one in speeds] == ["onnxruntime", "torch"]
    assert all(one.speedup > 0 for one in speeds)
    assert saved["environment"]["torch"] == torch.__version__


def test_original_is_untouched() -> None:
    model = net().train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    result = factorize.compress(model, X, rank=4, latency=False)
    assert isinstance(model[3], nn.Conv2d)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(module.training for module in result.model.modules())


def test_existing_files_are_not_overwritten_unasked(
    run: tuple[factorize.Result, Path],
) -> None:
    before = {path: path.read_bytes() for path in run[1].iterdir()}
    with pytest.raises(OutputError, match="Pass force=True"):
        factorize.compress(net(), X, rank=2, out=run[1])
    assert {path: path.read_bytes() for path in run[1].iterdir()} == before


def test_failure_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(NoConvolutionError, match="stay dense"):
        factorize.compress(net(), X, rank=1000, out=tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(OutputError, match="must be a folder"):
        factorize.compress(net(), X, rank=4, out=file)
    assert file.read_text() == "mine"


def test_model_that_cannot_be_exported_still_gives_the_rest(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = factorize.compress(Unexportable(), X, rank=4, out=out)
    assert [one.split(":")[0] for one in result.report.failures] == ["model.onnx", "model.pt2"]
    assert {"model.safetensors", "plan.json", "report.json", "report.html"} <= {
        p.name for p in out.iterdir()
    }
    assert not (out / "model.onnx").exists()


class Sharing(nn.Module):
    """One module used twice, and another that shares its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 1)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.again = self.two
        self.tied = nn.Conv2d(8, 8, 3, padding=1)
        self.tied.weight = self.two.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tied(self.again(self.two(self.one(x))))


def test_sharing_survives_saving_and_loading(tmp_path: Path) -> None:
    result = factorize.compress(Sharing(), X, rank=4, out=tmp_path, latency=False)
    loaded = factorize.load(tmp_path, Sharing())
    assert loaded.two is loaded.again
    assert loaded.two[0].weight is loaded.tied[0].weight
    with torch.no_grad():
        assert torch.equal(loaded(X), result.model(X))


def test_forced_run_leaves_nothing_of_the_earlier_one(tmp_path: Path) -> None:
    for name in ("model.onnx", "model.pt2", "finetune.ckpt", "mine.txt"):
        (tmp_path / name).write_text("old")
    factorize.compress(Unexportable(), X, rank=4, out=tmp_path, force=True, latency=False)
    names = {"model.safetensors", "plan.json", "report.json", "report.html", "mine.txt"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_convolution_held_outside_of_the_module_tree_stays_or_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3)
            self.middle, self.last = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
            self.held = [self.last]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.held[0](self.middle(self.conv(x)))

    plan = factorize.compress(Hidden(), X, rank=2, latency=False).plan
    assert [layer.spec.name for layer in plan.factorized] == ["middle"]
    assert "holds it in a list" in (plan.layers[-1].skip_reason or "")
    monkeypatch.setattr("factorize.graph.stand_ins.refused", lambda *_: {})
    with pytest.raises(UnsupportedLayerError, match="last: the model still calls"):
        factorize.compress(Hidden(), X, rank=2, latency=False)


def test_failed_load_leaves_the_model_as_it_was(
    run: tuple[factorize.Result, Path], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    (tmp_path / "plan.json").write_bytes((run[1] / "plan.json").read_bytes())
    save_file({"other": torch.zeros(3)}, tmp_path / "model.safetensors")
    model = net()
    with pytest.raises(ModelLoadError, match="must fit"):
        factorize.load(tmp_path, model)
    assert isinstance(model[3], nn.Conv2d)
    assert model[3].weight.any()


def test_weights_that_cannot_be_saved_do_not_lose_the_rest(tmp_path: Path) -> None:
    class Extra(nn.ReLU):
        def get_extra_state(self) -> dict[str, int]:
            return {"a": 1}

        def set_extra_state(self, state: dict[str, int]) -> None:
            pass

    model = net()
    model[2] = Extra()
    result = factorize.compress(model, X, rank=4, out=tmp_path, latency=False)
    assert [one.split(":")[0] for one in result.report.failures] == ["model.safetensors"]
    assert (tmp_path / "model.onnx").exists()


def test_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(DeviceError, match="must be auto, cpu or cuda"):
        factorize.compress(net(), X, rank=4, device="tpu")


@pytest.mark.parametrize("missing", ["plan.json", "model.safetensors"])
def test_incomplete_folder_is_refused(
    run: tuple[factorize.Result, Path], tmp_path: Path, missing: str
) -> None:
    for path in run[1].iterdir():
        if path.name != missing:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises((ModelLoadError, factorize.FactorizeError), match=missing) as caught:
        factorize.load(tmp_path, net())
    assert "\n" not in str(caught.value)


def test_what_a_report_is_about_and_what_stands_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cuda, "missing", lambda _: None)
    for device, beside in (("cpu", ["torch-cpu"]), ("cuda", ["torch-cpu", "cuda"])):
        found = timed_on(None, device, 2, 3)
        assert found == [Target(name, 2, 3) for name in ("onnxruntime", *beside)]
    asked = Target("torch-cpu")
    assert timed_on(asked, "cuda", 2, 3) == [asked]


@pytest.mark.parametrize("signal", [KeyboardInterrupt, Terminated])
def test_what_is_exported_is_kept_where_its_timing_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal: type[BaseException]
) -> None:
    def stop(*_: object) -> None:
        raise signal

    monkeypatch.setattr("factorize.run.deliver.speedups", stop)
    with pytest.raises(signal):
        factorize.compress(net(), X, rank=4, out=tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "model.safetensors", "plan.json", "model.onnx", "model.pt2", "report.json", "report.html",
    }  # fmt: skip
    report = load_report(tmp_path / "out" / "report.json")
    assert report.speed == ()
    assert report.bytes["onnx"].keys() == {"original", "compressed"}
    assert "interrupted before all files were exported and timed" in report.notes


def test_weights_are_kept_where_an_export_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("factorize.export.bundle.export_program", stop)
    with pytest.raises(KeyboardInterrupt):
        factorize.compress(net(), X, rank=4, out=tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "model.safetensors", "plan.json", "model.onnx", "report.json", "report.html"
    }  # fmt: skip
    monkeypatch.setattr("factorize.export.bundle.save_weights", stop)
    with pytest.raises(KeyboardInterrupt):
        factorize.compress(net(), X, rank=4, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("wish", "error", "message"),
    [
        ({"rank": 0}, RankError, "an integer >= 1"),
        ({"rank": 4, "energy": 0.5}, RankError, "not both"),
        ({}, RankError, "is needed"),
        ({"energy": 2.0}, RankError, "share in"),
        ({"rank": 4, "method": "cpp"}, UnsupportedLayerError, "got 'cpp'"),
        ({"rank": 4, "method": "auto"}, UnsupportedLayerError, "got 'auto'"),
        ({"rank": "lossless", "energy": 0.5}, RankError, "lossless"),
        ({"budget": factorize.Budget(macs=0.5), "method": "cp,cpp"}, UnsupportedLayerError, "cpp"),
    ],
)
def test_a_wrong_wish_is_told_before_the_folder_and_before_any_work(
    run: tuple[factorize.Result, Path], monkeypatch: pytest.MonkeyPatch, wish: dict[str, Any],
    error: type[Exception], message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("factorize.run.steps.graph.find", lambda *_: pytest.fail("work"))
    with pytest.raises(error, match=message):
        factorize.compress(net(), X, out=run[1], **wish)


def test_the_report_has_the_name_that_was_given() -> None:
    common = {"latency": False, "finetune": 1, "data": [torch.rand(8, *X.shape[1:])] * 4}
    assert factorize.compress(net(), X, rank=4, name="mine", latency=False).report.model == "mine"
    rounds = factorize.compress(net(), X, rank=0.3, name="mine", stages=2, **common)
    assert rounds.report.model == "mine"
    assert factorize.compress(net(), X, rank=4, latency=False).report.model == "Sequential"
