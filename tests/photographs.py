"""A small net and images like photographs, for the tests of what fits are asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from factorize.fit import FitConfig
from factorize.types import Data

X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
FEW = FitConfig(images=40)


def net() -> nn.Module:
    """Convolutions with a bias and with a batch norm, in a block and outside of it."""
    torch.manual_seed(0)
    block = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16), nn.ReLU(),
    )  # fmt: skip
    block[3].running_mean.normal_()
    block[3].running_var.uniform_(0.5, 2)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), block, nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ).eval()  # fmt: skip


def photographs(count: int = 60) -> Tensor:
    """Smooth images (N, 3, 16, 16): neighbours are alike, as in photographs."""
    rough = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(rough, size=16, mode="bicubic") + 0.3


def data_of(images: Tensor) -> Data:
    """Unlabelled images, some of them for each use."""
    train = [(batch,) for batch in images[:-10].split(16)]
    return Data(train, [(images[-10:],)], None, False, None, "photographs")


def distance(model: nn.Module, original: nn.Module, images: Tensor) -> float:
    """Relative difference of the outputs."""
    with torch.no_grad():
        wanted = original(images)
        return float((model(images) - wanted).norm() / wanted.norm())
