"""A result of a timm or transformers model is a folder that loads in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import factorize
from factorize import export
from factorize.errors import ModelLoadError
from factorize.models.load_model import load_model

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(autouse=True)
def _weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other exports, of which nothing is asked here, take most of a run's time."""

    def weights(made: Any, _: Any, compressed: Any, *__: Any) -> None:
        export.save_weights(compressed, made.folder / "model.safetensors")

    monkeypatch.setattr(export, "export_all", weights)


LOAD = """
import sys, torch, factorize
out, given = sys.argv[1:]
x, expected = torch.load(given)
y = factorize.load(out)(x)
assert torch.equal(y if isinstance(y, torch.Tensor) else y.logits, expected)
"""


def compressed(model: nn.Module, out: Path) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(1, 3, 32, 32)
    result = factorize.compress(
        model, x, rank=2, fit=factorize.FitConfig("weights"), out=out, latency=False
    )
    assert result.plan.factorized
    assert not any("config.json" in note for note in result.report.notes)
    y: Any = result.model(x)
    return x, (y if isinstance(y, torch.Tensor) else y.logits).detach()


def assert_loads(out: Path, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    given = out.parent / "pair.pt"
    torch.save(pair, given)
    run = [sys.executable, "-c", LOAD, str(out), str(given)]
    subprocess.run(run, check=True, capture_output=True)
    with pytest.raises(ModelLoadError, match="is a result of factorize"):
        load_model(out)
    assert "factorize.load(" in (out / "README.md").read_text()


def test_of_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip(
        "timm", reason="timm is not installed (pip install '.[timm]'): no result of it is tested"
    )
    out, arguments = tmp_path / "out", {"num_classes": 5, "act_layer": "gelu"}
    loaded = load_model("timm:test_resnet", arch_args=arguments)
    assert_loads(out, compressed(loaded.model, out))
    state = torch.random.get_rng_state()
    factorize.load(out)
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(RuntimeError, match="Missing key"):  # never a net that is half random
        timm.create_model(f"local-dir:{out}", pretrained=True)


def test_what_timms_configuration_does_not_tell_is_no_folder(tmp_path: Path) -> None:
    timm = pytest.importorskip(
        "timm", reason="timm is not installed (pip install '.[timm]'): no result of it is tested"
    )
    model, out = timm.create_model("test_resnet"), tmp_path / "out"
    model.act1 = nn.Sigmoid()
    result = factorize.compress(
        model, torch.randn(1, 3, 32, 32), rank=2, fit=factorize.FitConfig("weights"), out=out,
        latency=False,
    )  # fmt: skip
    assert any("config.json is not written" in note for note in result.report.notes)
    assert not (out / "config.json").exists()
    assert not (out / "README.md").exists()
    with pytest.raises(ModelLoadError, match="Pass a fresh original model too"):
        factorize.load(out)


def test_of_transformers(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip(
        "transformers", reason="transformers is not installed (pip install '.[hf]'): untested"
    )
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5
    )
    source, out = tmp_path / "source", tmp_path / "out"
    transformers.ResNetForImageClassification(config).save_pretrained(source)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 32}).save_pretrained(source)
    assert_loads(out, compressed(load_model(source).model, out))
    name = "preprocessor_config.json"
    assert (out / name).read_text() == (source / name).read_text()
    assert json.loads((out / "config.json").read_text())["model_type"] == "factorized-resnet"
    with pytest.raises(ValueError, match="does not recognize this architecture"):
        transformers.AutoModelForImageClassification.from_pretrained(out)
    with pytest.raises(ValueError, match="load this folder by factorize.load"):
        transformers.ResNetForImageClassification.from_pretrained(out)
