"""A file called like the module that it was made of."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx_files import image, net, node, random, save, twin_of
from torch import Tensor, nn

from factorize.export import export_onnx
from factorize.measure import OnnxNet, as_metric
from factorize.measure.worth import metric_values

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Outputs(nn.Module):
    """Gives its two values in some form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form, self.one, self.two = form, nn.Conv2d(3, 4, 3), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Any:
        a, b = self.one(x), self.two(x).mean((2, 3))
        return {
            "tensor": a, "tuple": (a, b), "list": [a, b], "dict": {"b": b, "a": a},
            "nested": {"a": (a, [b])}, "none": (a, None, b),
        }[self.form]  # fmt: skip


def alike(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.allclose(one, two, atol=1e-5)
    if isinstance(one, dict):
        return list(one) == list(two) and all(alike(one[k], two[k]) for k in one)
    if one is None:
        return two is None
    return type(one) is type(two) and all(map(alike, one, two))


@pytest.mark.parametrize("form", ["tensor", "tuple", "list", "dict", "nested", "none"])
def test_outputs_are_as_the_module_gives_them(tmp_path: Path, form: str) -> None:
    model = Outputs(form).train()
    export_onnx(model, X[:1], tmp_path / "net.onnx")
    found = OnnxNet(tmp_path / "net.onnx", model, X[:1], threads=1)
    assert alike(model(X), found(X))
    assert model.training
    assert alike(model(X[:1]), found.train()(X[:1]))


class Two(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x.mean((2, 3)) * mask


@pytest.mark.parametrize("example", [(X[:1], X[:1, :, 0, 0]), {"x": X[:1], "mask": X[:1, :, 0, 0]}])
def test_inputs_in_order_and_by_name(tmp_path: Path, example: Any) -> None:
    export_onnx(Two(), example, tmp_path / "net.onnx")
    found = OnnxNet(tmp_path / "net.onnx", Two(), example, threads=1)
    wanted = Two()(X, X[:, :, 0, 0])
    assert torch.allclose(found(X, X[:, :, 0, 0]), wanted, atol=1e-6)
    assert torch.allclose(found(mask=X[:, :, 0, 0], x=X), wanted, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 4, 7])
def test_a_fixed_batch_is_filled_up(tmp_path: Path, batch: int) -> None:
    weights = {"w": random(8, 3, 3, 3), "shape": np.array([batch, -1])}
    nodes = [node("Conv", "x w", "a", "conv"), node("Reshape", "a shape", "y")]
    path = save(tmp_path / "net.onnx", nodes, weights, inputs={"x": (batch, 3, 9, 10)})
    twin = twin_of(path, image())
    found = OnnxNet(path, twin, image(), threads=1)
    for samples in (1, 2, 5, 8):
        x = image(samples, 3, 9, 10)
        assert torch.allclose(found(x), twin(x), atol=1e-4)


def test_an_onnx_file_with_channels_last(tmp_path: Path) -> None:
    nodes = [node("Transpose", "image", "x", perm=[0, 3, 1, 2]), node("Conv", "x w", "y")]
    path = save(
        tmp_path / "net.onnx", nodes, {"w": random(4, 3, 3, 3)},
        inputs={"image": ("N", 9, 10, 3)},
    )  # fmt: skip
    twin = twin_of(path, image())
    assert torch.allclose(OnnxNet(path, twin, image())(image(2, 3, 9, 10)),
                          twin(image(2, 3, 9, 10)), atol=1e-4)  # fmt: skip


def test_a_users_function_asks_for_the_device_and_may_copy_it(tmp_path: Path) -> None:
    path = net(tmp_path / "net.onnx")
    twin = twin_of(path, image())
    found = OnnxNet(path, twin, image(), threads=1)

    def mean(model: nn.Module) -> float:
        device = next(model.parameters()).device
        return float(copy.deepcopy(model)(image().to(device)).mean())

    wanted = float(twin(image()).detach().mean())
    metric = as_metric(mean)
    assert metric is not None
    assert metric_values(metric, found)["mean"] == pytest.approx(wanted, abs=1e-5)
    assert not found(image().requires_grad_()).requires_grad
    assert copy.deepcopy(found).to("meta")(image()).device.type == "meta"  # goes where it is
    assert found(image()).device.type == "cpu"
