"""Without timm, transformers or huggingface_hub there is one line, whatever else is installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from loading import refusal

from factorize.cli.parse import default_out
from factorize.errors import ModelLoadError
from factorize.models.hub_folder import fresh


@pytest.fixture(autouse=True)
def without_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("timm", "transformers", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, package, None)


def folder(tmp_path: Path, **config: object) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    return tmp_path


def test_the_extra_is_named(tmp_path: Path) -> None:
    told = "timm:resnet18: needs timm. Install factorize[timm]."
    assert refusal("timm:resnet18") == told
    assert refusal("hf:a/b") == "hf:a/b: needs huggingface_hub. Install factorize[hf]."
    place = folder(tmp_path, architecture="resnet18")
    assert refusal(place) == f"{place}: needs timm. Install factorize[timm]."
    place = folder(tmp_path, model_type="resnet", architectures=["ResNetModel"])
    assert refusal(place) == f"{place}: needs transformers. Install factorize[hf]."


def test_a_folder_is_looked_at_before_anything_is_imported(tmp_path: Path) -> None:
    place = folder(tmp_path, model_type="resnet")
    (place / "model.safetensors").rename(place / "pytorch_model.bin")
    assert "Use --trust-pickle" in refusal(place)
    (place / "model.safetensors.index.json").touch()
    (place / "config.json").write_text('{"architecture": "resnet18"}')
    assert "Use --trust-pickle" in refusal(place)
    (place / "model.safetensors.index.json").unlink()
    (place / "pytorch_model.bin").unlink()
    assert "must have a model.safetensors" in refusal(place)
    (place / "plan.json").touch()
    assert "is a result of factorize" in refusal(place)
    (place / "plan.json").unlink()
    assert "must be of timm" in refusal(folder(place, model="x"))
    attention = {"_attn_implementation": "org/kernel"}
    assert "asks for code" in refusal(folder(place, model_type="vit", **attention))
    assert "is quantized" in refusal(folder(place, model_type="vit", quantization_config={}))
    weights = {"transformers_weights": "adapter_model.bin"}
    assert "must be in model.safetensors" in refusal(folder(place, model_type="vit", **weights))
    (place / "config.json").write_text("{")
    assert "must be a JSON file" in refusal(place)
    with pytest.raises(ModelLoadError, match="has no config.json, which only results"):
        fresh(tmp_path / "elsewhere")


def test_the_output_is_beside_a_folder_and_named_after_a_repository(tmp_path: Path) -> None:
    place = folder(tmp_path)
    assert default_out(str(place)) == place.parent / f"{place.name}-factorized"
    assert default_out("hf:org/net") == Path("net-factorized")
    assert default_out("timm:resnet18") == Path("resnet18-factorized")
