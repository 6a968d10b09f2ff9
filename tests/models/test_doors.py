"""The doors: which kind of MODEL each one takes, and what goes with it."""

from pathlib import Path

import pytest
from loading import refusal, saved, tiny
from torch import nn

from factorize.models import (
    digits,
    hub_folder,
    load_model,
    model_file,
    onnx_model,
    pickled_module,
    state_dict,
    timm_name,
)
from factorize.models import torchvision_name as by_name
from factorize.models.door import Door, LoadedModel, Source


def door_of(source: Source) -> Door:
    return next(door for door in load_model.DOORS if door.takes(source))


def test_each_kind_has_its_door(tmp_path: Path) -> None:
    module = str(saved(tiny(), tmp_path))
    weights = str(saved(tiny().state_dict(), tmp_path, "weights.pt"))
    assert door_of(Source("digits")) is digits
    assert door_of(Source("torchvision:resnet18")) is by_name
    assert door_of(Source("timm:resnet18")) is timm_name
    assert door_of(Source("hf:org/net")) is hub_folder
    (tmp_path / "config.json").touch()
    assert door_of(Source(str(tmp_path))) is hub_folder
    assert door_of(Source(module)) is pickled_module
    assert door_of(Source(module, arch="tiny:net")) is state_dict
    assert door_of(Source(weights)) is state_dict
    assert door_of(Source("net.onnx")) is onnx_model
    assert door_of(Source("net.ONNX")) is onnx_model
    assert door_of(Source(weights, arch="torchvision:resnet18")) is state_dict


def test_a_door_is_one_more_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dense:
        OPTIONS: tuple[str, ...] = ("arch_args",)

        def takes(self, source: Source) -> bool:
            return source.name.startswith("dense:")

        def load(self, source: Source) -> LoadedModel:
            assert source.arch_args == {"bias": False}
            return LoadedModel(nn.Conv2d(1, 1, 1, **source.arch_args), source.name)

    monkeypatch.setattr(load_model, "DOORS", (Dense(), *load_model.DOORS))
    loaded = load_model.load_model("dense:1x1", arch_args={"bias": False})
    assert not loaded.model.training
    assert "--arch goes with a file" in refusal("dense:1x1", arch="tiny:net")
    assert "--weights goes with torchvision:NAME" in refusal("dense:1x1", weights="DEFAULT")
    assert "goes with an ONNX file" in refusal("dense:1x1", shapes={"x": (1, 3)})


@pytest.mark.parametrize("content", [tiny(), tiny().state_dict()], ids=["module", "weights"])
def test_a_file_is_read_once(
    content: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text("from loading import tiny\n")
    path, read = saved(content, tmp_path), []
    original = model_file.load_pickled
    monkeypatch.setattr(
        model_file, "load_pickled", lambda *a, **k: read.append(a) or original(*a, **k)
    )
    load_model.load_model(path, arch=f"{tmp_path / 'net.py'}:tiny")
    assert len(read) == 1
    if isinstance(content, nn.Module):
        load_model.load_model(path)
        assert len(read) == 2


def test_options_are_refused_before_a_file_is_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.pt"
    assert "--weights goes with torchvision:NAME" in refusal(missing, weights="DEFAULT")
    assert "--arch-args needs --arch" in refusal(missing, arch_args={"width": 4})
    assert "there is none" in refusal(missing)
