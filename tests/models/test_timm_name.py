"""``timm:NAME``, as a model and as the architecture of a file; no weights are downloaded here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from loading import assert_same, refusal, saved

from factorize.models import timm_name
from factorize.models.load_model import load_model
from factorize.types import Preprocessing

timm = pytest.importorskip(
    "timm", reason="timm is not installed (pip install '.[timm]'): its names are not tested"
)


def test_a_name_is_a_model_with_timms_own_input() -> None:
    loaded = load_model("timm:test_vit", arch_args={"num_classes": 7})
    assert loaded.model(torch.zeros(1, *loaded.input_shape or ())).shape == (1, 7)
    assert loaded.input_shape == (3, 160, 160)
    assert loaded.preprocessing == Preprocessing((0.5,) * 3, (0.5,) * 3, 168, 160)
    assert loaded.notes == ("random weights: pass --weights DEFAULT or a file",)


def test_arguments_change_the_input() -> None:
    loaded = load_model("timm:test_vit", arch_args={"in_chans": 4, "img_size": 64})
    assert loaded.input_shape == (4, 64, 64)
    assert loaded.preprocessing is not None
    loaded.preprocessing.check(4, "test")
    assert load_model("timm:test_vit", arch_args={"img_size": [64, 96]}).input_shape == (3, 64, 96)


def test_mean_std_and_crop_are_those_of_the_weights() -> None:
    own = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 0.5, "crop_mode": "squash"}
    model = timm.create_model("test_resnet", pretrained_cfg_overlay=own)
    shape, preprocessing, notes = timm_name.input_of(model, {})
    assert shape == (3, 160, 160)
    assert preprocessing == Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 320, 160)
    assert "crop mode squash" in notes[0]


@pytest.mark.parametrize(
    "name, weights, entry",
    [
        ("test_vit", "DEFAULT", "test_vit"),
        ("test_vit.r160_in1k", "DEFAULT", "test_vit.r160_in1k"),
        ("test_vit", "r160_in1k", "test_vit.r160_in1k"),
    ],
)
def test_timm_is_asked_for_its_weights(
    monkeypatch: pytest.MonkeyPatch, name: str, weights: str, entry: str
) -> None:
    asked: list[Any] = []

    def create(name: str, *, pretrained: bool, **more: Any) -> Any:
        asked.append((name, pretrained))
        return original(name, **more)

    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)
    loaded = load_model(f"timm:{name}", weights=weights)
    assert asked == [(entry, True)]
    assert loaded.notes == ("weights r160_in1k",)
    loaded = load_model(f"timm:{name}", weights=weights, arch_args={"num_classes": 7})
    assert "its head is random: the weights are for 1000 classes" in loaded.notes


def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, **_: Any) -> Any:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm, "create_model", create)
    assert "cannot download the weights DEFAULT" in refusal("timm:test_vit", weights="DEFAULT")


def test_what_timm_does_not_have_is_told() -> None:
    assert "did you mean resnet18" in refusal("timm:resnet_18")
    assert "has no weights nope; it has a1_in1k" in refusal("timm:resnet18", weights="nope")
    assert "unexpected keyword" in refusal("timm:resnet18", arch_args={"foo": 1})
    assert "--arch goes with a file" in refusal("timm:resnet18", arch="timm:resnet18")
    told = refusal("timm:resnet18", arch_args={"checkpoint_path": "weights.pth"})
    assert "checkpoint_path says where weights come from" in told


def test_a_file_is_put_into_a_named_architecture(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=6).eval()
    path = saved(model.state_dict(), tmp_path)
    loaded = load_model(path, arch="timm:test_resnet")
    assert loaded.arch == "timm:test_resnet"
    assert loaded.input_shape == (3, 160, 160)
    assert_same(loaded.model, model)
    assert "does not fit timm:test_vit" in refusal(path, arch="timm:test_vit")
    assert timm_name.fitted_arguments("test_resnet", {"fc.weight": (6, 2)}) == {"num_classes": 6}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hub = pytest.importorskip("timm.models._hub")
    model = timm.create_model("test_resnet", num_classes=5)
    hub.save_for_hf(model, tmp_path, safe_serialization=True)
    return tmp_path


def edited(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_a_folder_of_timm_is_a_model(folder: Path) -> None:
    from safetensors.torch import load_file

    loaded = load_model(folder)
    for key, value in load_file(folder / "model.safetensors").items():
        assert torch.equal(loaded.model.state_dict()[key], value)
    assert loaded.arch == f"{folder} (timm test_resnet)"
    assert loaded.input_shape == (3, 160, 160)
    assert loaded.preprocessing == Preprocessing((0.5,) * 3, (0.5,) * 3, 168, 160)
    assert loaded.notes == ()


def test_a_folder_has_the_input_of_its_arguments(tmp_path: Path) -> None:
    hub = pytest.importorskip("timm.models._hub")
    arguments = {"img_size": 64, "in_chans": 4}
    model = timm.create_model("test_vit", **arguments)
    hub.save_for_hf(model, tmp_path, model_args=arguments, safe_serialization=True)
    assert load_model(tmp_path).input_shape == (4, 64, 64)


def test_a_model_that_is_half_random_is_refused(folder: Path) -> None:
    torch.manual_seed(1)  # whatever the caller's numbers are
    assert "fc.weight is missing or of another shape" in refusal(edited(folder, num_classes=7))
    edited(folder, num_classes=5, model_args={"num_classes": 7})
    assert "fc.weight is missing or of another shape" in refusal(folder)


def test_weights_that_cannot_be_read_are_told(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    whole = load_file(file)
    save_file(whole | {"fc.bias": torch.full((5,), torch.nan)}, file)
    assert "not finite" in refusal(folder)
    file.write_bytes(file.read_bytes()[:1000])
    assert "the weights are truncated or damaged" in refusal(folder)
    assert "cannot be loaded" in refusal(edited(folder, architecture="test_nothing"))
