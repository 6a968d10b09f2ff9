"""Nets whose convolutions are of every kind: random weights, seed 0."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn


class Double(nn.Sequential):
    """Two convolutions with batch norms."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs),
            nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs), nn.ReLU(),
        )  # fmt: skip


class UNet(nn.Module):
    """Ronneberger et al. 2015, at half the width, with batch norms; transposed convolutions up."""

    def __init__(self, width: int = 32, classes: int = 2) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.down = nn.ModuleList(map(Double, (3, *widths[:-1]), widths))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * w, w, 2 if w > 64 else 4, 2, 0 if w > 64 else 1)
            for w in reversed(widths[:-1])
        )
        self.merge = nn.ModuleList(Double(2 * w, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, classes, H, W), sizes divisible by 16."""
        kept = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            kept.append(x)
        for up, merge, side in zip(self.up, self.merge, kept[-2::-1], strict=True):
            x = merge(torch.cat((side, up(x)), 1))
        return self.head(x)


class Audio(nn.Sequential):
    """A 1-D net over raw samples in the manner of M11 (Dai et al. 2017)."""

    def __init__(self, classes: int = 35) -> None:
        layers: list[nn.Module] = [nn.Conv1d(1, 64, 80, 4, 38), nn.BatchNorm1d(64), nn.ReLU()]
        inputs = 64
        for outputs, count in ((64, 2), (128, 2), (256, 3), (512, 2)):
            layers.append(nn.MaxPool1d(4))
            for index in range(count):
                dilation = 1 + index % 2
                layers += [
                    nn.Conv1d(inputs, outputs, 9, padding=4 * dilation, dilation=dilation),
                    nn.BatchNorm1d(outputs), nn.ReLU(),
                ]  # fmt: skip
                inputs = outputs
        super().__init__(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(inputs, classes))


class Resized(nn.Module):
    """deeplabv3's logits alone."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torchvision.models.segmentation.deeplabv3_resnet50(
            weights=None, weights_backbone=None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 21, H, W)."""
        return self.net(x)["out"]


NETS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "r3d_18": (lambda: torchvision.models.video.r3d_18(weights=None), (3, 8, 64, 64)),
    "unet": (UNet, (3, 128, 128)),
    "audio": (Audio, (1, 8192)),
    "deeplabv3_resnet50": (Resized, (3, 160, 160)),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A net in eval mode, its batch norms' statistics those of random input, and an input."""
    make, shape = NETS[name]
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
            norm.momentum = None  # a plain mean over the batches
        for _ in range(2):
            model.train()(torch.randn(4, *shape))
    return model.eval(), torch.randn(1, *shape)
