"""Scales moved between two layers change the float net by rounding only."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from factorize.quantize.balance import balance_

X = torch.randn(6, 4, 9, 8, generator=torch.Generator().manual_seed(0))
PAIRS = {
    "1x1 to depthwise": (nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)),
    "depthwise to 1x1": (nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.Conv2d(4, 7, 1)),
    "depthwise of two each": (nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 16, 3, groups=8)),
    "grouped to 1x1": (nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 5, 1, bias=False)),
    "1x1 to grouped": (nn.Conv2d(4, 6, 1), nn.Conv2d(6, 9, 3, groups=3)),
    "3x1 to 1x3": (nn.Conv2d(4, 6, (3, 1)), nn.Conv2d(6, 5, (1, 3), padding=(0, 1))),
    "1-D": (nn.Conv1d(4, 6, 3), nn.Conv1d(6, 5, 3, padding=1)),
    "3-D": (nn.Conv3d(4, 6, 1), nn.Conv3d(6, 5, 3, padding=1)),
    "linear": (nn.Linear(8, 6), nn.Linear(6, 5)),
    "linear without biases": (nn.Linear(8, 6, bias=False), nn.Linear(6, 5, bias=False)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_net_stays_and_the_ranges_come_closer(name: str) -> None:
    first, second = copy.deepcopy(PAIRS[name])
    x = X.flatten(2) if name == "1-D" else X[..., None] if name == "3-D" else X
    spread = 10.0 ** torch.linspace(-2, 1, first.weight.shape[0])
    with torch.no_grad():
        first.weight.mul_(spread.view(-1, *[1] * (first.weight.ndim - 1)))
        between, wanted = first(x), second(first(x))
        before = between.clone()
        scales = balance_(first, second, [between[:2], between[2:]])
        assert scales is not None
        assert float(scales.max() / scales.min()) > 2
        assert torch.allclose(second(first(x)), wanted, rtol=1e-4, atol=1e-5)
        assert torch.allclose(first(x), between, rtol=1e-4, atol=1e-5)  # divided too
        axis = -1 if name.startswith("linear") else 1
        rows = [v.movedim(axis, 0).flatten(1).abs().amax(1) for v in (before, between)]
    assert float(rows[1].max() / rows[1].min()) < float(rows[0].max() / rows[0].min())


def test_pairs_that_do_not_fit_stay() -> None:
    x = torch.randn(2, 4, 6, 6)
    pairs = [
        (nn.Conv2d(4, 6, 1), nn.Conv2d(5, 6, 1)),
        (nn.Conv2d(4, 6, 1), nn.Linear(6, 3)),  # the width of the image, not its channels
        (nn.Linear(6, 4), nn.Conv2d(4, 3, 1)),
    ]
    for first, second in pairs:
        kept = [w.clone() for w in (*first.parameters(), *second.parameters())]
        with torch.no_grad():
            assert balance_(first, second, [first(x)]) is None
        found = (*first.parameters(), *second.parameters())
        assert all(torch.equal(a, b) for a, b in zip(kept, found, strict=True))


def test_dead_channels_and_zeros_give_no_number_that_is_none() -> None:
    first, second = copy.deepcopy(PAIRS["1x1 to grouped"])
    with torch.no_grad():
        first.weight[1] = 0
        first.bias[1] = 0
        second.weight[:, 1] = 0
        between, wanted = first(X), second(first(X))
        scales = balance_(first, second, [between])
        assert scales is not None
        assert bool(scales.isfinite().all())
        assert torch.allclose(second(first(X)), wanted, rtol=1e-4, atol=1e-5)
        assert balance_(first, second, [torch.zeros_like(between)]) is None
