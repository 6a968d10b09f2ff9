"""State dicts are recognised among torchvision's models by names and shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from loading import assert_same, saved
from torch import nn
from torchvision import models

from factorize.errors import ModelLoadError
from factorize.models.architectures import (
    _WithoutValues,
    build_empty,
    input_of,
    names,
    structure,
)
from factorize.models.load_model import load_model
from factorize.models.recognition import find_fitting, nearest


def zeros(name: str, arguments: dict) -> nn.Module:
    """Build an entry with all tensors zero: quick, and finite."""
    model = build_empty(name, arguments)
    for tensor in model.state_dict().values():
        tensor.zero_()
    return model


class TestRecognition:
    @pytest.mark.parametrize(
        ("name", "arguments"),
        [
            ("resnext50_32x4d", {}),
            ("vgg11_bn", {"num_classes": 1}),
            ("squeezenet1_1", {"num_classes": 7}),
            ("densenet121", {"num_classes": 100}),
            ("mobilenet_v3_small", {"num_classes": 2}),
            ("regnet_y_400mf", {}),
            ("vit_b_32", {"num_classes": 10, "image_size": 384}),
            ("swin_t", {}),
            ("inception_v3", {"num_classes": 10, "aux_logits": False}),
            ("googlenet", {"aux_logits": False}),
            ("googlenet", {"num_classes": 5}),
            ("deeplabv3_resnet50", {"num_classes": 4, "aux_loss": True}),
            ("fasterrcnn_resnet50_fpn", {"num_classes": 3}),
            ("ssd300_vgg16", {"num_classes": 5}),
            ("raft_small", {}),
        ],
    )
    def test_families(self, name: str, arguments: dict) -> None:
        assert find_fitting(structure(name, **arguments)) == [(name, arguments)]

    def test_detector_settings_do_not_show_in_weights(self, tmp_path: Path) -> None:
        model = zeros("fasterrcnn_mobilenet_v3_large_fpn", {})
        path = saved(model.state_dict(), tmp_path)
        with pytest.raises(ModelLoadError, match=r"320_fpn and .*large_fpn alike.*--arch"):
            load_model(path)
        loaded = load_model(path, arch="torchvision:fasterrcnn_mobilenet_v3_large_fpn")
        assert (loaded.input_shape, loaded.preprocessing) == (None, None)
        assert_same(loaded.model, model.eval())

    def test_names_of_older_torchvision(self) -> None:
        """vision_transformer and detection modules rename these themselves when they load."""
        vit = structure("vit_b_32")
        old = {
            k.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v
            for k, v in vit.items()
        }
        assert old.keys() != vit.keys()
        assert find_fitting(old) == [("vit_b_32", {})]

    def test_densenet_names_of_2017(self, tmp_path: Path) -> None:
        model = zeros("densenet121", {})
        old = {
            k.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): v
            for k, v in model.state_dict().items()
        }
        assert_same(load_model(saved(old, tmp_path)).model, model.eval())

    def test_outputs_are_the_originals(self, tmp_path: Path) -> None:
        """What a constructor computes and does not save must be there too."""
        image = torch.rand(1, 3, 32, 32)
        for name in ("regnet_y_400mf", "mnasnet0_5"):  # the last checks its version
            torch.manual_seed(3)
            model = models.get_model(name, weights=None, num_classes=6).eval()
            loaded = load_model(saved(model.state_dict(), tmp_path), arch=f"torchvision:{name}")
            with torch.no_grad():
                assert torch.equal(loaded.model(image), model(image))

    def test_no_match_names_the_nearest(self, tmp_path: Path) -> None:
        changed = dict(zeros("resnet18", {}).state_dict())
        changed["extra.weight"] = changed.pop("layer4.1.conv2.weight")
        changed["layer1.0.conv1.weight"] = torch.zeros(64, 64, 1, 1)
        with pytest.raises(ModelLoadError) as caught:
            load_model(saved(changed, tmp_path))
        message = str(caught.value)
        assert "\n" not in message
        assert "nearest is resnet18" in message
        assert "missing layer4.1.conv2.weight" in message
        assert "unexpected extra.weight" in message
        assert "layer1.0.conv1.weight is (64, 64, 1, 1), expected (64, 64, 3, 3)" in message
        assert "--arch" in message

    def test_nearest_by_names_where_no_shape_agrees(self) -> None:
        thin = {key: tuple(n + 1 for n in shape) for key, shape in structure("resnet34").items()}
        assert nearest(thin).startswith(
            "nearest is resnet34: conv1.weight is (65, 4, 8, 8), expected (64, 3, 7, 7); "
        )
        assert nearest({"dncnn.0.weight": (1,)}) is None

    def test_googlenet_says_what_weights_do_not_show(self, tmp_path: Path) -> None:
        model = zeros("googlenet", {"aux_logits": False})
        path = saved(model.state_dict(), tmp_path)
        loaded = load_model(path)
        assert any("transform_input" in note for note in loaded.notes)
        loaded = load_model(
            path,
            arch="torchvision:googlenet",
            arch_args={"transform_input": True, "aux_logits": False},
        )
        assert loaded.model.transform_input
        assert not any("transform_input" in note for note in loaded.notes)


def test_every_name_has_an_input_or_says_it_has_none() -> None:
    sizes = {name: input_of(name)[0] for name in names()}
    assert sizes["inception_v3"] == (3, 299, 299)
    assert sizes["efficientnet_b7"] == (3, 600, 600)
    assert sizes["deeplabv3_resnet50"] == (3, 520, 520)
    assert {name for name, size in sizes.items() if size is None} == {
        name
        for name in names()
        if any(part in name for part in ("rcnn", "ssd", "retinanet", "fcos", "raft", "3d", "mvit"))
        or name in ("mc3_18", "r2plus1d_18")
    }


def test_truncated_normal_values_are_not_drawn_for_ever() -> None:
    weight = torch.full((8, 8), 1e30)  # as fresh memory may hold: nothing within the bounds
    with _WithoutValues("cpu", frozenset()):
        torch.nn.init.trunc_normal_(weight, std=0.02)
    assert float(weight.abs().max()) <= 2
