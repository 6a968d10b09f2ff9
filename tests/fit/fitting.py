"""What the tests of fits share: nets, images for them, and what the nets compute when run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import factorize
from factorize import calibrate
from factorize.tensor.moments import Calibration
from factorize.types import Plan


class Plain(nn.Module):
    """Biases, batch norms, strides, dilation and padding modes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, (3, 5), (1, 2), (1, 2), bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.third = nn.Conv2d(8, 8, 3, 1, 2, 2, bias=False, padding_mode="reflect")
        self.fourth = nn.Conv2d(8, 6, 3, padding="same", padding_mode="circular")

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.norm(self.second(x)))
        return self.fourth(torch.relu(self.third(x)))


class Residual(nn.Module):
    """Blocks with shortcuts: before a norm, without one, and a convolution; defined in reverse."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(8, 5, 3)
        self.shortcut = nn.Conv2d(8, 8, 3, 2, 1, bias=False)
        self.convs = nn.ModuleList(
            nn.Conv2d(6 if i == 5 else 8, 8, 3, 2 if i == 0 else 1, 1, bias=i in (1, 2))
            for i in range(8)
        )
        self.norms = nn.ModuleDict({str(i): nn.BatchNorm2d(8) for i in (0, 2, 3, 4, 5, 6)})

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.norms["5"](self.convs[5](x)))
        y = torch.relu(self.norms["4"](self.convs[4](x)))
        y = self.norms["3"](self.convs[3](y))
        y += x
        x = torch.relu(y)
        y = torch.relu(self.convs[2](x))
        x = torch.relu(x + self.convs[1](y))
        y = torch.relu_(self.norms["2"](self.convs[7](torch.relu(self.convs[6](x)))))
        x = x + y  # no shortcut to make up for: a nonlinearity lies between
        y = self.norms["0"](self.convs[0](x)) + self.norms["6"](self.shortcut(x))
        return self.head(torch.relu(y))


class Dense(nn.Module):
    """Each layer reads all that came before; called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(6 + 6 * i, 6, 3, padding=1) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.cat((x, torch.relu(conv(input=x))), 1)
        return x


class Twice(nn.Module):
    """A module that is called twice, on maps of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(6, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.top = nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.again(torch.relu(self.stem(x))))
        x = nn.functional.avg_pool2d(x, 2)
        return self.top(torch.relu(self.again(x)))


def images(count: int = 40, size: int = 12, seed: int = 0) -> Tensor:
    """Smooth images, neighbouring pixels alike, of a mean that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 6, size + 4, size + 4, generator=generator, dtype=torch.float64)
    mixed = torch.einsum(
        "nchw,dc->ndhw",
        noise,
        torch.randn(6, 6, generator=torch.Generator().manual_seed(9)).double(),
    )
    return nn.functional.avg_pool2d(mixed, 5, 1) * 3 + 0.5


def batches(x: Tensor) -> list[Tensor]:
    """In batches of different sizes."""
    return list(x.split([7, 16, 1, 9, len(x) - 33]))


def made(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """A net with random weights, its batch norms as trained on such images."""
    torch.manual_seed(seed)
    model = kind().double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
        model.train()(images(seed=1))
    return model.eval()


def plan_of(model: nn.Module, method: str = "spatial_svd", rank: Any = 0.25) -> Plan:
    plan = factorize.make_plan(model, images(2), method=method, rank=rank, allow_costlier=True)
    assert plan.factorized
    return plan


def calibration(model: nn.Module, plan: Plan, x: Tensor) -> Calibration:
    """Of all positions."""
    specs = {layer.spec.name: layer.spec for layer in plan.factorized}
    return calibrate.collect(model, specs, batches(x), per_image=10**6)


def calls(model: nn.Module, name: str, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Input and output of a module at each call."""
    seen = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        seen.append(((args[0] if args else kwargs["input"]).clone(), out.clone()))  # as of now

    handle = model.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
    with torch.no_grad():
        model(x)
    handle.remove()
    return seen


def deviation(y: Tensor, bias: bool) -> Tensor:
    return y - y.mean((0, 2, 3), keepdim=True) if bias else y


def measured(wanted: Tensor, actual: Tensor, bias: bool) -> float:
    """Relative error; where there is a bias, relative to the deviation from the mean."""
    return float((actual - wanted).norm() / deviation(wanted, bias).norm())


def parts(x: Tensor) -> tuple[Tensor, Tensor]:
    fit, held_out = calibrate.split(batches(x))
    return torch.cat(fit), torch.cat(held_out)


def output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)
