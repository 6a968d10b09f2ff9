"""``digits``: the built-in example's network, trained on scikit-learn's handwritten digits.

The weights beside this file are made by ``scripts/train_digits.py``; `data.digits` has the images.
"""

from __future__ import annotations

from importlib.resources import files

import torch.nn.functional as F
from torch import Tensor, nn

from factorize.models.door import LoadedModel, Source

OPTIONS: tuple[str, ...] = ()


def takes(source: Source) -> bool:
    """Whether it is the example's name."""
    return source.name == "digits"


def load(source: Source) -> LoadedModel:
    """Build the example with its trained weights."""
    return LoadedModel(load_digits_model(), source.name, (1, 8, 8))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside an identity, or a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, H/stride, W/stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """Grey 8x8 images (N, 1, 8, 8) to ten logits (N, 10); about 220,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(64)
        self.block1 = ResidualBlock(64, 64, stride=1)  # (N, 64, 8, 8)
        self.block2 = ResidualBlock(64, 96, stride=2)  # (N, 96, 4, 4)
        self.linear = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 1, 8, 8) to logits (N, 10)."""
        x = self.block2(self.block1(F.relu(self.bn(self.conv(x)))))
        return self.linear(x.mean(dim=(2, 3)))


def load_digits_model() -> DigitsNet:
    """Build the example network with its trained weights, in eval mode."""
    from safetensors.torch import load

    model = DigitsNet()
    weights = files("factorize.models").joinpath("digits.safetensors").read_bytes()
    model.load_state_dict(load(weights))
    return model.eval()
