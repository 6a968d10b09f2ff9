"""Folders of timm and transformers, made here; the Hub is asked for none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from loading import assert_same, refusal

from factorize.export import hub_files
from factorize.models.hub_folder import fresh
from factorize.models.load_model import load_model

transformers: Any = pytest.importorskip(
    "transformers", reason="transformers is not installed (pip install '.[hf]'): untested"
)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def small(**more: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5,
        **more,
    )  # fmt: skip
    return transformers.ResNetForImageClassification(config).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small().save_pretrained(tmp_path)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(tmp_path)
    return tmp_path


def edited(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_a_folder_of_transformers_is_a_model(folder: Path) -> None:
    loaded = load_model(folder)
    assert_same(loaded.model, small())
    assert loaded.arch == f"{folder} (ResNetForImageClassification)"
    assert loaded.input_shape == (3, 64, 64)
    assert loaded.preprocessing is not None
    assert (loaded.preprocessing.resize, loaded.preprocessing.crop) == (73, 64)
    assert loaded.notes == ()


def test_the_hub_is_asked_for_safetensors_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: dict[str, Any] = {}

    def download(name: str, **how: Any) -> str:
        asked.update(how, name=name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert_same(load_model("hf:org/net@v1").model, small())
    assert (asked["name"], asked["revision"]) == ("org/net", "v1")
    assert "plan.json" in asked["allow_patterns"]  # which makes a result one that is refused
    assert not any("bin" in pattern for pattern in asked["allow_patterns"])
    load_model("hf:org/net", trust_pickle=True)
    assert any("bin" in pattern for pattern in asked["allow_patterns"])

    def fail(name: str, **_: Any) -> str:
        raise ConnectionError("no route to host.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert "cannot be downloaded: ConnectionError: no route to host. Check" in refusal("hf:a/b")


def test_half_precision_becomes_float32(folder: Path) -> None:
    small().half().save_pretrained(folder)
    loaded = load_model(folder)
    assert all(p.dtype == torch.float32 for p in loaded.model.parameters())
    assert loaded.notes[0].startswith("saved in float16")


def test_weights_that_are_not_all_there_are_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    lost = state.pop("classifier.1.weight")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert "classifier.1.weight is missing" in refusal(folder)
    state["classifier.1.weight"] = lost * float("nan")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert "not finite" in refusal(folder)


def test_a_pickle_is_read_where_it_is_trusted_and_nothing_else_is_there(folder: Path) -> None:
    from safetensors.torch import load_file

    torch.save({}, folder / "pytorch_model.bin")
    assert_same(load_model(folder, trust_pickle=True).model, small())
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "Use --trust-pickle" in refusal(folder)
    assert_same(load_model(folder, trust_pickle=True).model, small())


def test_weights_of_other_shapes_are_refused_in_one_line(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told = refusal(edited(folder, hidden_sizes=[8, 24]))
    assert "classifier.1.weight has (5, 16) in the file and (5, 24) by config.json" in told
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert "the weights are truncated or damaged" in refusal(folder)
    assert capfd.readouterr() == ("", "")  # neither bars nor tables


def test_only_image_models_of_the_library_are_built(folder: Path) -> None:
    assert "takes input_ids" in refusal(
        edited(folder, architectures=["BertModel"], model_type="bert")
    )
    assert "no model class 'AutoConfig'" in refusal(edited(folder, architectures=["AutoConfig"]))
    mine = edited(folder, architectures=["Mine"], auto_map={"AutoModel": "mine.Mine"})
    (mine / "mine.py").write_text("raise SystemExit")
    assert "code of its own, which is not run" in refusal(mine)


def test_a_model_made_by_its_class_is_described(tmp_path: Path) -> None:
    assert hub_files.write(small(), tmp_path) == []
    (tmp_path / "plan.json").touch()
    made = fresh(tmp_path)
    assert type(made) is type(small())
    assert str(made) == str(small())


PROCESSORS = [
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}),
    transformers.ConvNextImageProcessor(do_resize=False),
    transformers.EfficientNetImageProcessor(do_resize=False, rescale_offset=True),
    transformers.EfficientNetImageProcessor(do_resize=False, rescale_offset=False),
    transformers.ViTImageProcessor(do_resize=False, do_normalize=False, rescale_factor=1 / 127.5),
    transformers.ViTImageProcessor(do_resize=False, do_rescale=False, image_mean=[120.0] * 3),
]


@pytest.mark.parametrize("processor", PROCESSORS)
def test_pixels_are_made_ready_as_by_the_processor(processor: Any, folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    processor.save_pretrained(folder)
    steps = load_model(folder).preprocessing
    assert steps is not None
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    expected = processor(list(images), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(steps.normalise(images), expected, rtol=1e-4, atol=1e-4)


def test_what_differs_from_the_processor_is_told(folder: Path) -> None:
    small(image_size=32).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "Nobodys"}')
    loaded = load_model(folder)
    assert loaded.input_shape == (3, 32, 32)
    assert "cannot be used" in loaded.notes[0]
    transformers.MobileViTImageProcessor().save_pretrained(folder)
    assert "BGR" in load_model(folder).notes[0]
    transformers.ViTImageProcessor().save_pretrained(folder)
    assert "squashes images to 224x224" in load_model(folder).notes[0]
