"""Torchvision's families, one small member each, and the ONNX files that exporters make of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
import torchvision
from onnx import helper
from torch import nn
from zoo_models import enliven

from factorize.export.traces import quiet

CLASSIFIERS = """
resnet18 mobilenet_v3_small squeezenet1_1 shufflenet_v2_x0_5 mnasnet0_5 mobilenet_v2 regnet_x_400mf
regnet_y_400mf alexnet googlenet vgg11_bn resnet50 resnext50_32x4d wide_resnet50_2 efficientnet_b0
swin_t swin_v2_t convnext_tiny inception_v3 vit_b_16 maxvit_t densenet121 efficientnet_v2_s
""".split()  # noqa: SIM905
SEGMENTERS = ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50"]
NETS = (*CLASSIFIERS, *SEGMENTERS)
SIDE = 96
SIDES = {"maxvit_t": 64}
OLD_SIDES = {"alexnet": 224, "vgg11_bn": 224}
"""The old exporter wants adaptive pooling to divide what it pools."""


def side_of(name: str, how: str = "") -> int:
    """Height and width of a net's images."""
    known = SIDES | OLD_SIDES if how.startswith("old") else SIDES
    return known.get(name, SIDE)


def model_of(name: str) -> nn.Module:
    """The model with random weights, none of them 0, its batch norms used to random images."""
    torch.manual_seed(0)
    side = side_of(name)
    if name == "big":
        return Big().eval()
    if name == "maxvit_t":  # as torchvision's, but for 224x224 images and windows of 7x7
        net: nn.Module = torchvision.models.MaxVit(
            (side, side), 64, 2, [64, 128, 256, 512], [2, 2, 5, 2], 32, 0.2
        )
    else:
        more: dict[str, Any] = {"weights_backbone": None} if name in SEGMENTERS else {}
        if name in ("googlenet", "inception_v3"):
            more = {"init_weights": False, "aux_logits": False}
        elif name == "vit_b_16":
            more = {"image_size": side}
        net = torchvision.models.get_model(name, weights=None, **more)
    enliven(net)
    net.train()
    with torch.no_grad():
        net(torch.randn(4, 3, side, side))
    return net.eval()


class Big(nn.Module):
    """Four convolutions, and linear layers of 2 GiB."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 128, 3, 2, 1)
        self.three, self.four = (nn.Conv2d(128, 128, 3, padding=1) for _ in range(2))
        self.pool = nn.AdaptiveAvgPool2d(8)
        self.large = nn.ModuleList(nn.utils.skip_init(nn.Linear, 8192, 8192) for _ in range(8))
        rows = torch.randn(64, 8192) / 8192**0.5
        for index, layer in enumerate(self.large):
            layer.weight.data.view(128, 64, 8192).copy_(rows.roll(index, 0))
            layer.bias.data.fill_(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, 8192)."""
        y = self.three(self.two(self.one(x).relu()).relu()).relu()
        y = self.pool(self.four(y).relu()).flatten(1)
        for layer in self.large:
            y = layer(y).relu()
        return y


def exported(net: nn.Module, x: torch.Tensor, how: str, kind: str, path: Path) -> None:
    """Write the ONNX file.

    Parameters
    ----------
    how
        ``dynamo:OPSET`` or ``old:OPSET``.
    kind
        ``plain``; ``constants``: every weight is a Constant node, as PaddlePaddle writes them;
        ``external``: the data is in a file beside it; ``float16``; ``free``: any height and width;
        ``large``: over 2 GB, the data in a file beside it.
    """
    exporter, _, opset = how.partition(":")
    if kind == "float16":
        net, x = net.half(), x.half()
    free = {0: "batch"} | ({2: "height", 3: "width"} if kind == "free" else {})
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            program = torch.onnx.export(
                net, (x,), dynamo=True, opset_version=int(opset), verbose=False,
                dynamic_shapes=(dict.fromkeys(free, torch.export.Dim.DYNAMIC),),
            )  # fmt: skip
            assert program is not None
            program.save(path, external_data=kind in ("external", "large"))
        else:
            torch.onnx.export(
                net, (x,), path, dynamo=False, opset_version=int(opset), input_names=["x"],
                dynamic_axes={"x": free},
            )  # fmt: skip
            if kind == "external":
                onnx.save(
                    onnx.load(path), path, save_as_external_data=True, location="net.data",
                    size_threshold=0,
                )  # fmt: skip
    if kind == "constants":
        model = onnx.load(path)
        nodes, tensors = [*model.graph.node], [*model.graph.initializer]
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.node.extend(
            helper.make_node("Constant", [], [one.name], value=one) for one in tensors
        )
        model.graph.node.extend(nodes)
        onnx.save(model, path)
