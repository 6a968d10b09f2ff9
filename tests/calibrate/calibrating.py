"""What the tests of calibration share: exact tensors, and a net with its images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from factorize.graph.find import find
from factorize.spec import ConvSpec
from factorize.tensor.layout import laid_out
from factorize.tensor.moments import Moments


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def whole(*shape: int, seed: int = 0) -> Tensor:
    """Whole numbers in float64: sums of their products are exact, in any order."""
    return torch.randint(-4, 5, shape, generator=generator(seed)).double()


class Net(nn.Module):
    """Two maps, a convolution used twice and named twice, batch norm, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.twice = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.again = self.twice
        self.last = nn.Conv2d(4, 2, 3, stride=2, padding=1)
        self.head = nn.Linear(2, 3)
        self.heads = self.forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        x = F.relu(self.twice(self.drop(self.norm(self.first(x)))))
        x = self.last(self.again(F.max_pool2d(x, 2)))
        self.heads += 1
        return self.head(x.mean((2, 3)))


def net() -> tuple[Net, dict[str, ConvSpec]]:
    torch.manual_seed(0)
    model = Net()
    found = (site.spec for site in find(model, torch.zeros(1, 1, 8, 8)))
    specs = {spec.name: spec for spec in found if spec.kind == "conv2d"}
    laid_out(model, IMAGES[0])  # it is found out how images are to lie, once
    model.heads = model.forwards = 0
    return model, specs


IMAGES = torch.randn(23, 1, 8, 8, generator=generator(5)).split(6)


def same(a: Moments, b: Moments) -> bool:
    tensors = zip((*a.second, a.mean), (*b.second, b.mean), strict=True)
    return (a.count, a.images) == (b.count, b.images) and all(torch.equal(x, y) for x, y in tensors)
