"""Models rewritten by a fit and by reconstruction: closer, and the given ones left as they were."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from photographs import FEW, X, data_of, net, photographs
from torch import Tensor, nn

import factorize
from factorize.fit import apply_, fit_sequential, reconstruct
from factorize.types import Data

# torch.export's own deprecations, and accelerate's on a machine without a GPU.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning:torch|accelerate|onnxscript")]


def distance(model: nn.Module, original: nn.Module, images: Tensor) -> float:
    """Relative difference of the outputs."""
    with torch.no_grad():
        wanted = original(images)
        return float((model(images) - wanted).norm() / wanted.norm())


@pytest.fixture(scope="module")
def data() -> Data:
    return data_of(photographs())


@pytest.mark.parametrize("training", [False, True])
def test_rewrite_leaves_the_model_as_it_was(data: Data, training: bool) -> None:
    model = net().train(training)
    state = copy.deepcopy(model.state_dict())
    plan = factorize.plan(model, X, rank=3)
    fitted = factorize.rewrite(model, plan, data=data, config=FEW)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(m.training is training for one in (model, fitted) for m in one.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    images, plain = photographs(), factorize.rewrite(model, plan)
    assert distance(fitted.eval(), net(), images) < 0.5 * distance(plain.eval(), net(), images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_model_of_another_precision_is_fitted_in_its_own(data: Data, dtype: torch.dtype) -> None:
    model = net().to(dtype)
    result = factorize.compress(
        model, X.to(dtype), rank=3, data=data, fit=FEW, latency=False, device="cpu"
    )
    for one in (model, result.model):
        assert {p.dtype for p in one.parameters()} == {dtype}
    plain = factorize.rewrite(model, result.plan).double()
    seen = set()
    with model[0].register_forward_pre_hook(lambda _, args: seen.add(args[0].dtype)):
        factorize.rewrite(model, result.plan, data=data, config=FEW)
    assert seen == {torch.promote_types(dtype, torch.float32)}  # sums of halves would overflow
    images = photographs().double()
    far = distance(plain, copy.deepcopy(model).double(), images)
    assert distance(result.model.double(), model.double(), images) < 0.5 * far


def test_reconstruction_brings_the_outputs_closer_and_is_told(data: Data) -> None:
    options = {"rank": 3, "data": data, "latency": False, "device": "cpu"}
    plain, tuned = (
        factorize.compress(net(), X, fit=replace(FEW, reconstruct=wanted), **options)
        for wanted in (False, True)
    )
    notes = [any("--reconstruct" in note for note in one.report.notes) for one in (plain, tuned)]
    assert notes == [False, True]
    images, block = photographs(), net()[:3]
    closer, before = (distance(one.model[:3], block, images) for one in (tuned, plain))
    assert closer < before


class Joining(nn.Module):
    """Two tensors in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(self.conv(torch.cat((x, y), 1)))


class Parting(nn.Module):
    """Two tensors out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.relu(self.conv(x)).chunk(2, 1)


class Unusual(nn.Module):
    """Holders of layers that are called otherwise than with one tensor for one, or never."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parting, self.joining = Parting(), Joining()
        self.listed = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1)])
        self.plain = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.joining(*self.parting(x.repeat(1, 3, 1, 1)[:, :8]))
        return self.plain(torch.relu(self.listed[0](x)))


def test_reconstruction_leaves_alone_what_is_no_block() -> None:
    model, images = Unusual().eval(), list(photographs().split(20))
    plan = factorize.plan(model, X, rank=2)
    before = fit_sequential(model, plan, images)
    assert set(before.layers) == {
        "parting.conv", "joining.conv", "listed.0", "plain.0", "plain.2",
    }  # fmt: skip
    steps = []
    after = reconstruct(model, before, images, progress=lambda *now: steps.append(now[:3]))
    assert steps == [("reconstruct", 1, 1)]
    moved = {
        name
        for name, made in after.layers.items()
        if not torch.equal(made.weights[0].float(), before.layers[name].weights[0].float())
    }
    assert moved == {"plain.0", "plain.2"}


def test_reconstruction_takes_frozen_models_and_those_with_modes_of_their_own() -> None:
    class Own(nn.Module):
        def __init__(self, mode: Any) -> None:
            super().__init__()
            self.inner, self.mode = net(), mode

        def forward(self, x: Tensor) -> Tensor:
            with self.mode():
                return self.inner(x)

    images = list(photographs().split(20))
    for mode in (torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")):
        model = Own(mode).eval().requires_grad_(False)
        plan = factorize.plan(model, X, rank=3)
        before = fit_sequential(model, plan, images)
        after = reconstruct(model, before, images)
        name = "inner.2.0"
        assert not torch.allclose(
            after.layers[name].weights[0], before.layers[name].weights[0], rtol=1e-3
        )
        assert not any(p.requires_grad for p in apply_(copy.deepcopy(model), after).parameters())
