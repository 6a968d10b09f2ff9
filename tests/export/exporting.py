"""What the tests of exports share: a net with replaced layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def chain(i: int, o: int, **first: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(i, 3, (3, 1), padding=(1, 0), bias=False, **first),
        nn.Conv2d(3, o, (1, 3), padding=(0, 1)),
    )


class Net(nn.Module):
    """Residual, with batch norms behind and a replaced layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.bn1 = chain(8, 8), nn.BatchNorm2d(8)
        self.conv2 = chain(8, 8, padding_mode="reflect")
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.bn1(self.conv1(x))) + x
        x = self.conv2(self.conv2(x)) + x
        return self.fc(x.mean((2, 3)))


CHAINS = {"conv1": 2, "conv2": 2}


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    model(torch.randn(8, 3, 9, 9))  # batch-norm statistics other than 0 and 1
    nn.init.normal_(model.bn1.weight)
    return model


def image() -> torch.Tensor:
    return torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(1))
