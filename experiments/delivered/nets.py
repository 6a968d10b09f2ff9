"""Nets in the forms in which people have them: random weights, seed 0.

Each entry of `NETS`: how it is built, the size that it is delivered at, and three others that its
files are run at.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A net, one input to deliver it at, and others to run its files on."""

    build: Callable[[], nn.Module]
    at: tuple[int, ...]
    others: tuple[tuple[int, ...], ...]
    needs: str = "torchvision"  # the library that it comes from
    detector: bool = False
    fit: str = "sequential"  # weights: 512 channels would take many minutes


class Denoiser(nn.Sequential):
    """DnCNN (Zhang et al. 2017) of nine layers: the output is the noise."""

    def __init__(self, width: int = 48, depth: int = 9) -> None:
        layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
            layers += [nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(width, 1, 3, padding=1, bias=False))


class Audio(nn.Sequential):
    """A 1-D net that any length goes through."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv1d(1, 64, 9, 2, 4), nn.ReLU(), nn.Conv1d(64, 64, 9, padding=8, dilation=2),
            nn.ReLU(), nn.Conv1d(64, 128, 9, 2, 4), nn.ReLU(), nn.AdaptiveAvgPool1d(1),
            nn.Flatten(), nn.Linear(128, 10),
        )  # fmt: skip


class Yolo(nn.Module):
    """Layers in a list, with attributes by which the forward finds its way (``f``, ``i``)."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleList([
            nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 64, 3, 2, 1), nn.Conv2d(64, 64, 3, padding=1),
            nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(128, 64, 3, padding=1),
        ])  # fmt: skip
        for index, layer in enumerate(self.model):
            layer.i, layer.f = index, -1 if index < 4 else [-1, 1]

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 64, H / 4, W / 4)."""
        kept: list[Tensor] = []
        for layer in self.model:
            if layer.f != -1:
                x = torch.cat([x if j == -1 else kept[j] for j in layer.f], 1)
            x = F.silu(layer(x))
            kept.append(x)
        return x


def lightning_net() -> nn.Module:
    """A checkpoint as Lightning's trainer writes it, read as the command line reads it."""
    from factorize.models.load_model import load_model

    net = torchvision.models.resnet18(num_classes=10)
    state = {f"model.{name}": value for name, value in net.state_dict().items()}
    content = {
        "epoch": 3, "global_step": 100, "pytorch-lightning_version": "2.4.0",
        "state_dict": state, "hyper_parameters": {"lr": 1e-3}, "callbacks": {},
        "optimizer_states": [], "lr_schedulers": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        torch.save(content, Path(folder, "last.ckpt"))
        return load_model(str(Path(folder, "last.ckpt"))).model


def hugging_face() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=32, hidden_sizes=[64, 128, 128, 128], depths=[1, 1, 1, 1],
        layer_type="basic", num_labels=10,
    )  # fmt: skip
    return ResNetForImageClassification(config)


def smp() -> nn.Module:
    import segmentation_models_pytorch

    return segmentation_models_pytorch.Unet("resnet18", encoder_weights=None, classes=3)


def monai() -> nn.Module:
    from monai.networks.nets import UNet

    return UNet(2, 1, 2, channels=(32, 64, 64), strides=(2, 2), num_res_units=1)


def _sizes(channels: int, *sizes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple((1, channels, *size) for size in sizes)


RGB = _sizes(3, (64, 64), (96, 64), (128, 160), (224, 96))
NETS = {
    "hugging_face_resnet": Case(hugging_face, RGB[0], RGB[1:], "transformers"),
    "fcn_resnet50": Case(
        lambda: torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None),
        RGB[0], RGB[1:], fit="weights",
    ),
    "denoiser": Case(Denoiser, (1, 1, 48, 48), _sizes(1, (64, 64), (49, 77), (256, 256))),
    "audio": Case(Audio, (1, 1, 1024), _sizes(1, (1000,), (2048,), (16001,))),
    "ssdlite320": Case(
        lambda: torchvision.models.detection.ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=5
        ),
        (1, 3, 320, 320), _sizes(3, (320, 320), (320, 320), (320, 320)), detector=True,
    ),
    "yolo_attributes": Case(Yolo, RGB[0], RGB[1:]),
    "lightning_checkpoint": Case(lightning_net, RGB[0], RGB[1:], fit="weights"),
    "compiled": Case(
        lambda: torch.compile(torchvision.models.resnet18(num_classes=10)), RGB[0], RGB[1:],
        fit="weights",
    ),
    "smp_unet": Case(smp, RGB[0], RGB[1:], "segmentation_models_pytorch", fit="weights"),
    "monai_unet": Case(monai, (1, 1, 64, 64), _sizes(1, (96, 64), (128, 160), (224, 96)), "monai"),
}  # fmt: skip


def build(name: str) -> nn.Module:
    """The net, always the same."""
    torch.manual_seed(0)
    return NETS[name].build().eval()


def inputs(name: str) -> list[Any]:
    """What the files are run on: noise, a batch of two at the last size, or a detector's lists."""
    case, draw = NETS[name], torch.Generator().manual_seed(1)
    found = [torch.randn(size, generator=draw) for size in case.others]
    if not case.detector:
        found[-1] = found[-1].repeat(2, *[1] * (found[-1].ndim - 1))
    return [[one[0]] for one in found] if case.detector else found


def run_alone(way: str, folder: str, name: str, made: str) -> None:
    """In a process of its own: load by ``library``, ``pt2`` or ``onnx``; write the outputs."""
    given = torch.load(Path(made, "inputs.pt"))
    outputs = []
    with torch.no_grad():
        if way == "library":
            import factorize

            model: Any = factorize.load(folder, build(name))
            outputs = [model(one) for one in given]
        elif way == "pt2":
            model = torch.export.load(str(Path(folder, "model.pt2"))).module()
            outputs = [model(one) for one in given]
        else:
            import onnxruntime

            session = onnxruntime.InferenceSession(str(Path(folder, "model.onnx")))
            for one in given:
                values = [v.numpy() for v in (one if isinstance(one, list) else [one])]
                names = [i.name for i in session.get_inputs()]
                found = session.run(None, dict(zip(names, values, strict=True)))
                outputs.append([torch.from_numpy(v) for v in found])
    leaves = [[v for v in _leaves(one) if isinstance(v, Tensor)] for one in outputs]
    torch.save(leaves, Path(made, f"{way}.pt"))


def _leaves(value: Any) -> list[Any]:
    if hasattr(value, "to_tuple"):  # Hugging Face
        value = value.to_tuple()
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [leaf for one in value for leaf in _leaves(one)]
    return [value]


if __name__ == "__main__":
    run_alone(*json.loads(sys.argv[1]))
