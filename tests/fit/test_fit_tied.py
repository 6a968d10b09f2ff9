"""Layers that share a weight, one with a bias and one without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from searching import Tied
from torch import Tensor

import factorize
from factorize.fit import FitConfig, fit
from factorize.tensor.call import evaluating
from factorize.types import Data

IMAGES = torch.randn(20, 3, 12, 12, generator=torch.Generator().manual_seed(0)) + 1


def test_they_keep_one_weight_and_each_its_own_error() -> None:
    net = Tied(1).eval()
    plan = factorize.make_plan(net, IMAGES[:1], rank=3, method="spatial_svd", include=["a", "b"])
    data = Data([(IMAGES,)], [(IMAGES[:5],)], labelled=False)
    fitted = fit(net, plan, FitConfig("outputs", images=20), data=data)
    a, b = fitted.layers["a"], fitted.layers["b"]
    assert all(torch.equal(one, two) for one, two in zip(a.weights, b.weights, strict=True))

    seen: dict[str, Tensor] = {}
    for name in "ab":
        net.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: seen.update({name: given[0]})
        )
    used = torch.arange(20) % 5 != 4  # every fifth is held out
    with evaluating(net):
        net(IMAGES[used])
    inputs = torch.cat([seen["a"], seen["b"]]).double()  # the weight is fitted to both uses
    kernel = factorize.rewrite(net, plan, data=data, config=FitConfig("outputs", images=20))
    chain: Any = kernel.get_submodule("a")
    wanted = F.conv2d(inputs, net.a.weight.double(), padding=1)
    got = inputs
    for stage in chain:
        got = F.conv2d(got, stage.weight.double(), None, stage.stride, stage.padding)
    difference = wanted - got
    plain = (difference.norm() / wanted.norm()).item()
    mean = (0, 2, 3)
    centred = (difference - difference.mean(mean, keepdim=True)).norm() / (
        wanted - wanted.mean(mean, keepdim=True)
    ).norm()
    assert b.error == pytest.approx(plain, rel=1e-4)
    assert a.error == pytest.approx(centred.item(), rel=1e-4)
    assert a.error != pytest.approx(b.error, rel=1e-2)
