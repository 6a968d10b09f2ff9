"""What the tests of the walker share: an input, a layer, a plan of full rank."""

from __future__ import annotations

import copy

import torch
from torch import nn

import factorize

X = torch.randn(2, 8, 10, 10, generator=torch.Generator().manual_seed(0))


def conv(**options: object) -> nn.Conv2d:
    return nn.Conv2d(8, 8, 3, padding=1, **options)  # type: ignore[arg-type]


def full(model: nn.Module, x: torch.Tensor = X, **options: object) -> factorize.Plan:
    return factorize.make_plan(model, x, rank=1.0, allow_costlier=True, **options)  # type: ignore[arg-type]


def assert_same_function(model: nn.Module, other: nn.Module, x: torch.Tensor = X) -> None:
    with torch.no_grad():
        expected, actual = copy.deepcopy(model).eval()(x), copy.deepcopy(other).eval()(x)
    assert (actual - expected).norm() < 1e-4 * expected.norm()
