"""Fits by a calibration file, and files that fits save."""

import json
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from photographs import FEW, X, data_of, net, photographs
from torch import Tensor, nn

import factorize
from factorize.errors import DataError, OutputError
from factorize.fit import FitConfig
from factorize.fit import layerwise as layerwise_module
from factorize.methods.chain import chain_kernel
from factorize.tensor.moments import LayerCalibration
from factorize.types import Data

# torch.export's own deprecations, and accelerate's on a machine without a GPU.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning:torch|accelerate|onnxscript")]


def kernels(model: nn.Module) -> list[Tensor]:
    """What each chain of a rewritten model is equal to."""
    found = factorize.find(model, X)
    chains: dict[str, list[Any]] = {}
    for site in found:
        parent, _, last = site.spec.name.rpartition(".")
        if isinstance(model.get_submodule(parent)[int(last)], nn.Conv2d):
            chains.setdefault(parent, []).append(site.spec)
    return [
        chain_kernel(
            tuple(specs), tuple(model.get_submodule(s.name).weight.detach().double() for s in specs)
        )
        for parent, specs in chains.items()
        if parent and all(isinstance(one, nn.Conv2d) for one in model.get_submodule(parent))
    ]


@pytest.fixture(scope="module")
def data() -> Data:
    return data_of(photographs())


@pytest.fixture(scope="module")
def calibration(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the moments in `net`."""
    path = tmp_path_factory.mktemp("calibration") / "moments.safetensors"
    plan = factorize.make_plan(net(), X, rank=3)
    factorize.rewrite(net(), plan, data=data, config=replace(FEW, save_calibration=path))
    return path


def test_calibration_file_gives_the_chains_that_the_images_give(
    data: Data, calibration: Path
) -> None:
    plan = factorize.make_plan(net(), X, rank=3)
    outputs = replace(FEW, how="outputs")
    by_images = factorize.rewrite(net(), plan, data=data, config=outputs)
    by_file = factorize.rewrite(net(), plan, config=FitConfig(calibration=calibration))
    by_weights = factorize.rewrite(net(), plan)
    found = [kernels(model) for model in (by_images, by_file, by_weights)]
    assert [len(ones) for ones in found] == [3, 3, 3]
    for one, two, other in zip(*found, strict=True):
        assert (one - two).norm() < 1e-3 * one.norm()
        assert (one - other).norm() > 0.1 * one.norm()
    assert torch.allclose(by_images[3][-1].bias, by_file[3][-1].bias, atol=1e-4)


def test_images_are_not_read_where_there_is_a_calibration(calibration: Path) -> None:
    def unread() -> Iterator[Any]:
        raise AssertionError("the images were read")
        yield

    class Unread:
        def __iter__(self) -> Iterator[Any]:
            return unread()

    plan = factorize.make_plan(net(), X, rank=3)
    data = replace(data_of(photographs()), train=Unread())
    config = FitConfig(calibration=calibration)
    assert config.resolved(data) == "outputs"
    factorize.rewrite(net(), plan, data=data, config=config)
    with pytest.raises(DataError, match="were read"):
        factorize.rewrite(net(), plan, data=data, config=FitConfig())


def test_calibration_of_another_model_is_refused(calibration: Path, tmp_path: Path) -> None:
    model = net()
    model[3] = nn.Conv2d(16, 16, 3, stride=2)
    config = FitConfig(calibration=calibration)
    with pytest.raises(DataError, match=r"^3: the calibration must be of this very layer.*stride"):
        factorize.compress(model, X, rank=2, fit=config, out=tmp_path / "out", latency=False)
    model = nn.Sequential(nn.Identity(), net())
    with pytest.raises(DataError, match=r"^1\.2\.0: the calibration must have this layer"):
        factorize.compress(model, X, rank=2, fit=config, out=tmp_path / "out", latency=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 7, 500, -1])
def test_corrupt_calibration_is_refused(calibration: Path, tmp_path: Path, size: int) -> None:
    file = tmp_path / "moments.safetensors"
    file.write_bytes(calibration.read_bytes()[:size])
    with pytest.raises(DataError, match=r"moments\.safetensors.*whole safetensors") as caught:
        factorize.compress(
            net(), X, rank=3, fit=FitConfig(calibration=file), out=tmp_path / "out", latency=False
        )
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["moments.safetensors"]


def test_calibration_is_not_overwritten_unasked(data: Data, tmp_path: Path) -> None:
    file = tmp_path / "moments.safetensors"
    file.write_text("hours of work")
    config, progress = replace(FEW, save_calibration=file), []
    options = {"rank": 3, "fit": config, "latency": False, "device": "cpu", "data": data}
    with pytest.raises(OutputError, match="exists already.*force=True"):
        factorize.compress(
            net(), X, out=tmp_path / "out", progress=lambda *now: progress.append(now), **options
        )
    with pytest.raises(OutputError, match="exists already"):
        factorize.rewrite(net(), factorize.make_plan(net(), X, rank=3), data=data, config=config)
    assert not progress  # before any work
    assert file.read_text() == "hours of work"
    assert list(tmp_path.iterdir()) == [file]

    result = factorize.compress(net(), X, force=True, **options)
    assert result.report.settings["fit"]["how"] == "sequential"
    factorize.compress(net(), X, rank=3, fit=FitConfig(calibration=file), latency=False)
    assert list(tmp_path.iterdir()) == [file]


def test_calibration_can_be_saved_in_the_output_folder(data: Data, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = replace(FEW, how="weights", save_calibration=out / "moments.safetensors")
    factorize.compress(net(), X, rank=3, data=data, fit=config, out=out, latency=False)
    assert {"moments.safetensors", "model.safetensors"} <= {path.name for path in out.iterdir()}


def test_moments_are_let_go_once_their_layer_is_fitted(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[weakref.ref[LayerCalibration]] = []
    alive = []

    def fit_layer(layer: Any, module: Any, calibration: LayerCalibration, **options: Any) -> Any:
        seen.append(weakref.ref(calibration))
        alive.append(sum(one() is not None for one in seen))
        return plain_fit(layer, module, calibration, **options)

    plain_fit = layerwise_module.fit_layer
    monkeypatch.setattr(layerwise_module, "fit_layer", fit_layer)
    plan = factorize.make_plan(net(), X, rank=3)
    config = replace(FEW, how="outputs", memory=1.0)
    bounded = factorize.rewrite(net(), plan, data=data, config=config)
    assert alive == [1, 1, 1]
    at_once = factorize.rewrite(net(), plan, data=data, config=replace(config, memory=2e9))
    for one, two in zip(kernels(bounded), kernels(at_once), strict=True):
        assert torch.equal(one, two)


def test_table_shows_both_errors(
    command: Callable[..., Any], calibration: Path, unexported: None
) -> None:
    torch.save(net(), "net.pt")
    ran = command("net.pt", "--rank", 3, "--input-shape", "3,16,16", "--calibration", calibration)
    assert ran.code == 0, ran.err
    report = json.loads(Path("net-factorized/report.json").read_text())
    assert report["settings"]["fit"]["how"] == "outputs"
    assert "fit|held" in ran.out
    for layer in report["layers"]:
        if layer["method"]:
            shown = f"{100 * layer['error']:.1f}|{100 * layer['held_out_error']:.1f}"
            assert shown in ran.out
