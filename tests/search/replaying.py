"""What the tests of curves and replays share: small nets, images, and specs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from factorize import find
from factorize.spec import ConvSpec


class Net(nn.Module):
    """A residual block, a convolution called twice, in-place functions, a head."""

    def __init__(self, mute: bool = False, head: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.a = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.b = nn.Conv2d(16, 16, 3, padding=1)
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, head)
        self.mute = mute
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.stem(x).mul_(0.5))
        y = F.relu(self.norm(self.a(x)))
        x = x + self.b(y) * (0.0 if self.mute else 1.0)
        if self.fails:
            raise RuntimeError("the model's own")
        x = F.relu_(self.twice(x))
        x = F.relu_(self.twice(x))
        return self.head(x.mean((2, 3)))


def net(**options: object) -> Net:
    return Net(**options).eval()  # type: ignore[arg-type]


IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
BATCHES = list(IMAGES.split(5))


def specs_of(model: nn.Module) -> dict[str, ConvSpec]:
    sites = find(model, IMAGES[:1])
    specs = (site.spec for site in sites if site.spec.in_channels > 4)
    return {spec.name: spec for spec in specs if spec.kind == "conv2d"}


def conv(inputs: int, outputs: int, seed: int = 0) -> tuple[nn.Module, dict[str, ConvSpec]]:
    """A net of one layer, of random weights."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
    sites = find(model, torch.zeros(1, inputs, 8, 8))
    return model, {site.spec.name: site.spec for site in sites}
