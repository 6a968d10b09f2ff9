"""The layout that images are given to a model in: quicker, and never another result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from factorize.tensor.call import evaluating
from factorize.tensor.layout import forward

LAST = torch.channels_last


class Net(nn.Module):
    """Tells how its images lay in memory, and may insist on one layout."""

    def __init__(self, way: str = "") -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, groups=1 if way == "dense" else 3)
        self.way, self.seen = way, list[bool]()

    def forward(self, x: Tensor) -> Any:
        self.seen.append(x.is_contiguous(memory_format=LAST))
        y = self.conv(x)
        if self.way == "views":
            return y.view(len(y), -1)
        if self.way == "reads memory":
            return y + x.as_strided((1,), (1,), 7).squeeze()
        if self.way == "named":
            return {"maps": y, "count": len(y)}
        return y


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("way", ["", "dense", "views", "reads memory", "named"])
def test_outputs_are_those_of_the_images_as_they_come(way: str, images: Tensor):
    net = Net(way)
    with evaluating(net):
        wanted, got = net(images), forward(net, images)
    if way == "named":
        assert got["count"] == 5
        wanted, got = wanted["maps"], got["maps"]
    torch.testing.assert_close(got, wanted)
    assert got.is_contiguous()
    assert net.seen[-1] == (way in ("", "dense", "named"))


def test_it_is_found_out_once_on_two_samples(images: Tensor):
    net = Net("views")
    with evaluating(net):
        for _ in range(3):
            forward(net, images)
    assert net.seen == [True, False, False, False]


def test_what_is_no_image_is_left_alone():
    net = nn.Linear(4, 2)
    x = torch.ones(3, 4)
    assert torch.equal(forward(net, x), net(x))
