"""Blocks of an ONNX file's twin, tuned together as those of the module that it came from."""

from __future__ import annotations

import copy
from importlib import import_module
from pathlib import Path

import pytest
import torch
from onnx_files import image, node, random, save, twin_of
from torch import Tensor, nn

import factorize
from factorize.fit import Fitted, apply_, fit_sequential, reconstruct
from factorize.onnx_graph import Twin

X = image(1, 3, 9, 10)
LAYERS = 6


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("factorize.fit.reconstruct"), "STEPS", 40)


def images() -> list[Tensor]:
    return list(image(80, 3, 9, 10).split(20))


def both(folder: Path) -> tuple[nn.Sequential, Twin]:
    """Convolutions one after the other, as a module and as a file."""
    weights, nodes, modules, last = {}, [], list[nn.Module](), "x"
    for i in range(LAYERS):
        kernel = weights[f"{i}.weight"] = random(8, 8 if i else 3, 3, 3, scale=0.3 - 0.01 * i)
        nodes += [
            node("Conv", f"{last} {i}.weight", f"u{i}", f"{2 * i}", pads=[1, 1, 1, 1]),
            node("Relu", f"u{i}", f"v{i}"),
        ]
        last = f"v{i}"
        conv = nn.Conv2d(*kernel.shape[1::-1], 3, padding=1, bias=False)
        conv.weight.data = torch.from_numpy(kernel)
        modules += [conv, nn.ReLU()]
    path = save(folder / "net.onnx", nodes, weights, outputs=(last,))
    return nn.Sequential(*modules).eval(), twin_of(path, X)


def fits(model: nn.Module) -> tuple[Fitted, Fitted, list[tuple[int, int]]]:
    """Before and after, and the progress that was told."""
    plan = factorize.make_plan(model, X, rank=2, method="spatial_svd")
    before, steps = fit_sequential(model, plan, images()), list[tuple[int, int]]()
    after = reconstruct(model, before, images(), progress=lambda _, *now: steps.append(now[:2]))
    return before, after, steps


def test_they_are_tuned_as_those_of_the_module(tmp_path: Path) -> None:
    module, twin = both(tmp_path)
    one, other = fits(module), fits(twin)
    assert one[2] == other[2] == [(1, 2), (2, 2)]  # four layers and one, the first stays dense
    assert set(one[1].layers) == set(other[1].layers)
    for name, made in one[1].layers.items():
        for ours, its in zip(made.weights, other[1].layers[name].weights, strict=True):
            torch.testing.assert_close(its, ours, rtol=1e-2, atol=1e-3)
    (before, after, _), x = other, image(50, 3, 9, 10)
    with torch.no_grad():
        far, near = (
            float((apply_(copy.deepcopy(twin), fitted)(x) - module(x)).square().sum())
            for fitted in (before, after)
        )
    assert near < far


def test_a_file_is_written_with_them(tmp_path: Path) -> None:
    _, twin = both(tmp_path)
    result = factorize.compress(
        twin, X, rank=2, method="spatial_svd", data=torch.cat(images()), device="cpu",
        fit=factorize.FitConfig(reconstruct=True), latency=False, out=tmp_path / "out",
    )  # fmt: skip
    assert any("2 block(s) were tuned as a whole" in note for note in result.report.notes)
    assert result.report.failures == ()
    written = twin_of(tmp_path / "out" / "model.onnx", X)
    torch.testing.assert_close(written(X), result.model(X), rtol=1e-4, atol=1e-5)
