"""What the tests of plans share: an input, a net."""

from __future__ import annotations

import torch
from torch import nn

X = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1, stride=2),
        nn.Conv2d(24, 16, 1), nn.Conv2d(16, 8, (5, 1), padding="same"),
    )  # fmt: skip
