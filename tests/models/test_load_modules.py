"""Whole pickled modules: those of torch and torchvision load, others are refused by name."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from loading import IMAGENET, assert_same, refusal, saved, tiny
from torch import nn
from torchvision import models

from factorize.models.architectures import build_empty, shapes_of
from factorize.models.load_model import load_model
from factorize.models.pickles import load_pickled


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return models.resnet18(num_classes=10).eval()


def test_the_ways_a_resnet18_comes(resnet: nn.Module, tmp_path: Path) -> None:
    half = copy.deepcopy(resnet).half()
    parallel = {"state_dict": nn.DataParallel(resnet).state_dict(), "epoch": 90}
    for content in (resnet.state_dict(), resnet, parallel, half.state_dict()):
        loaded = load_model(saved(content, tmp_path))
        assert loaded.arch in ("torchvision:resnet18", "pickled module ResNet")
        assert any("torchvision:resnet18 with 10 classes" in note for note in loaded.notes)
        assert (loaded.input_shape, loaded.preprocessing) == ((3, 224, 224), IMAGENET)


class TestModules:
    def test_resnet(self, resnet: nn.Module, tmp_path: Path) -> None:
        loaded = load_model(saved(resnet, tmp_path))
        assert loaded.arch == "pickled module ResNet"
        assert loaded.input_shape == (3, 224, 224)
        assert loaded.preprocessing == IMAGENET
        assert any("torchvision:resnet18 with 10 classes" in note for note in loaded.notes)
        assert type(loaded.model) is models.ResNet
        assert loaded.model._norm_layer is nn.BatchNorm2d
        assert_same(loaded.model, resnet)
        image = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(loaded.model(image), resnet(image))

    def test_wrapped_and_nested(self, tmp_path: Path) -> None:
        model = nn.DataParallel(tiny())
        loaded = load_model(saved({"net": model}, tmp_path))
        assert loaded.arch == "pickled module Sequential"
        assert "read from key net" in loaded.notes
        assert_same(loaded.model, model.module)

    def test_compiled_when_trusted(self, tmp_path: Path) -> None:
        path = saved(torch.compile(tiny(), backend="eager"), tmp_path)
        assert_same(load_model(path, trust_pickle=True).model, tiny())

    @pytest.mark.parametrize(
        "name",
        [
            "densenet121",
            "vit_b_32",
            "googlenet",
            "deeplabv3_mobilenet_v3_large",
            "raft_small",
            "ssdlite320_mobilenet_v3_large",
            "fcos_resnet50_fpn",
            "maskrcnn_resnet50_fpn",
        ],
    )
    def test_torchvision_modules(self, name: str, tmp_path: Path) -> None:
        """With the helpers that detectors keep, and functools.partial of transformers."""
        model = build_empty(name, {}, device="meta")
        loaded = load_pickled(saved(model, tmp_path), trust=False)
        assert repr(loaded) == repr(model)
        assert shapes_of(loaded.state_dict()) == shapes_of(model.state_dict())
        # Pickled again it names the same classes: no stand-in is left in it.
        torch.save(loaded, tmp_path / "again.pt")
        asked = torch.serialization.get_unsafe_globals_in_checkpoint
        assert set(asked(tmp_path / "again.pt")) == set(asked(tmp_path / "model.pt"))

    def test_detector_runs(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model = models.get_model(
            "ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=3
        ).eval()
        loaded = load_pickled(saved(model, tmp_path), trust=False)
        image = [torch.rand(3, 64, 64)]
        with torch.no_grad():
            for got, expected in zip(loaded(image), model(image), strict=True):
                assert torch.equal(got["boxes"], expected["boxes"])


class Foreign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)


class TestRefused:
    def test_another_class_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "foreign.pt"
        torch.save({"model": Foreign()}, path)
        message = refusal(path)
        assert f"asks for {__name__}.Foreign" in message
        assert "--trust-pickle" in message
        loaded = load_model(path, trust_pickle=True)
        assert loaded.arch == "pickled module Foreign"
        assert not loaded.model.training

    def test_a_class_that_is_not_there(self, tmp_path: Path, monkeypatch) -> None:
        """Trusted or not, that is no damaged file."""
        module = tmp_path / "their_nets.py"
        one = "from torch import nn\nclass Net(nn.Conv2d): pass\n"
        module.write_text(f"{one}class Old(Net): pass\n")
        with monkeypatch.context() as there:
            there.syspath_prepend(tmp_path)
            import their_nets  # pyright: ignore[reportMissingImports]

            nets = [saved(kind(3, 4, 3), tmp_path, f"{kind.__name__}.pt")
                    for kind in (their_nets.Net, their_nets.Old)]  # fmt: skip
        assert "asks for their_nets.Net" in refusal(nets[0])
        del sys.modules["their_nets"]
        message = refusal(nets[0], trust_pickle=True)
        assert "defined in the module their_nets, which cannot be imported here" in message
        assert "PYTHONPATH" in message
        module.write_text(one)
        monkeypatch.syspath_prepend(tmp_path)
        message = refusal(nets[1], trust_pickle=True)
        assert "its class Old is defined in the module their_nets, which has none here" in message
        assert "save model.state_dict() where it loads" in message
        sys.modules.pop("their_nets", None)

    def test_whole_module_of_the_old_format(self, tmp_path: Path) -> None:
        path = tmp_path / "old.pt"
        torch.save(nn.Conv2d(1, 1, 1), path, _use_new_zipfile_serialization=False)
        assert "before PyTorch 1.6" in refusal(path)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_quantized_module(self, tmp_path: Path) -> None:
        layer = torch.ao.nn.quantized.ReLU6()
        path = tmp_path / "quantized.pt"
        torch.save(nn.Sequential(nn.Conv2d(1, 1, 1), layer), path)
        assert "quantized" in refusal(path)
        assert "1 is a quantized ReLU6" in refusal(path, trust_pickle=True)

    def test_compiled_module(self, tmp_path: Path) -> None:
        path = tmp_path / "compiled.pt"
        torch.save(torch.compile(nn.Conv2d(1, 1, 1), backend="eager"), path)
        assert "torch.compile" in refusal(path)

    @pytest.mark.parametrize("method", ["forward", "eval", "state_dict", "__call__"])
    def test_methods_cannot_be_replaced(self, method: str, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Conv2d(1, 1, 1))
        vars(model)[method] = nn.Identity()
        torch.save(model, tmp_path / "model.pt")
        assert f"attribute '{method}' of a Sequential shadows" in refusal(tmp_path / "model.pt")

    def test_weights_of_a_module_are_checked(self, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Conv2d(1, 2, 1))
        model[0].weight.data[0] = float("nan")
        torch.save(model, tmp_path / "nan.pt")
        assert "0.weight has 1 of 2 values that are not finite" in refusal(tmp_path / "nan.pt")


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("in_channels", 10**9),
        ("out_channels", 10**12),
        ("kernel_size", "ab"),
        ("kernel_size", (10**6, 10**6)),
        ("kernel_size", (3,)),
        ("groups", 0),
        ("groups", "1"),
        ("transposed", True),
    ],
)
def test_a_convolution_unlike_its_weight(attribute: str, value: object, tmp_path: Path) -> None:
    model = tiny()
    setattr(model[0], attribute, value)
    message = refusal(saved(model, tmp_path))
    assert "groups must be 1 or more" in message or "0: its weight must be" in message


def test_convolutions_of_every_kind_are_like_their_weights(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv1d(4, 6, 3, groups=2), nn.ConvTranspose2d(6, 4, (3, 5), groups=2),
        nn.ConvTranspose3d(4, 2, 3), nn.Conv3d(2, 2, 1),
    )  # fmt: skip
    assert_same(load_model(saved(model.eval(), tmp_path)).model, model)


@pytest.mark.parametrize("name", ["\x1b[31mred", "two\nlines", "n" * 300])
def test_a_name_that_cannot_be_shown(name: str, tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module(name, nn.Conv2d(1, 1, 1))
    for content in (model, model.state_dict()):
        assert "a name must be printable" in refusal(saved(content, tmp_path))
