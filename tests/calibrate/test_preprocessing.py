"""The range of a model's input, read off its first batch norm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from factorize.calibrate import input_range
from factorize.data.synthetic import made_up

IMAGES = made_up((3, 32, 32), 200).float() / 255


class Net(nn.Module):
    """A convolution and a batch norm behind it, or something else."""

    def __init__(self, first: nn.Module, norm: nn.Module, between: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.norm, self.between = first, norm, between or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.between(self.first(x)))


def trained(model: nn.Module, images: Tensor) -> nn.Module:
    """As if trained on images: its statistics are theirs."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    return model.eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0, 0, 0), (1, 1, 1)),
     ((0, 0, 0), (1 / 255,) * 3), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))],
)  # fmt: skip
def test_it_is_the_range_that_the_net_was_trained_in(
    mean: tuple[float, ...], std: tuple[float, ...], bias: bool
) -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(3, 24, 3, 2, 1, bias=bias)
    shape = (3, 1, 1)
    images = (IMAGES - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    found = input_range(trained(Net(first, nn.BatchNorm2d(24)), images), IMAGES)
    assert found is not None
    assert found.std == pytest.approx(std, rel=0.15)
    assert found.mean == pytest.approx(mean, abs=0.1)


@pytest.mark.parametrize(
    "model",
    [
        Net(nn.Conv2d(3, 8, 3), nn.Identity()),
        Net(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)),  # never trained
        Net(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)),
        trained(Net(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), IMAGES),
        trained(Net(nn.Conv2d(3, 9, 3, groups=3), nn.BatchNorm2d(9)), IMAGES),
        Net(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)),
        trained(Net(nn.ConvTranspose2d(3, 8, 3), nn.BatchNorm2d(8)), IMAGES),
        Net(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)),  # does not run on them
    ],
)
def test_nothing_is_told_where_nothing_is_known(model: nn.Module) -> None:
    assert input_range(model.eval(), IMAGES) is None


def test_the_model_is_left_as_it_was() -> None:
    model = trained(Net(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), IMAGES).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert input_range(model, IMAGES)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
