"""``timm:NAME``, as a model and as the architecture of a file; no weights are downloaded here."""

from __future__ import annotations

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

    def create(name: str, *, pretrained: bool) -> Any:
        asked.append((name, pretrained))
        return original(name)

    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)
    loaded = load_model(f"timm:{name}", weights=weights)
    assert asked == [(entry, True)]
    assert loaded.notes == ("weights r160_in1k",)


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


def test_a_file_is_put_into_a_named_architecture(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=6).eval()
    path = saved(model.state_dict(), tmp_path)
    loaded = load_model(path, arch="timm:test_resnet")
    assert loaded.arch == "timm:test_resnet"
    assert loaded.input_shape == (3, 160, 160)
    assert_same(loaded.model, model)
    assert "does not fit timm:test_vit" in refusal(path, arch="timm:test_vit")
    assert timm_name.fitted_arguments("test_resnet", {"fc.weight": (6, 2)}) == {"num_classes": 6}
