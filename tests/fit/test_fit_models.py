"""Models and images of all kinds: how they are fitted, and which are refused."""

import copy

import pytest
import torch
from fitting import (
    Dense,
    Plain,
    batches,
    calibration,
    calls,
    images,
    made,
    measured,
    output,
    parts,
    plan_of,
)
from torch import Tensor, nn

import factorize
from factorize.errors import DataError, PlanError
from factorize.fit import apply_, fit_outputs, fit_sequential, fit_weights

pytestmark = pytest.mark.usefixtures("no_pass_is_left")


def test_module_of_two_names_is_stopped_at_once() -> None:
    class Aliased(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.a_first, self.other_norm = self.first, self.norm

    model, x = made(Aliased), images()
    plan = plan_of(model)
    fitted = fit_sequential(model, plan, batches(x))
    assert list(fitted.means) == ["norm"]
    net = apply_(copy.deepcopy(model), fitted)
    assert net.get_submodule("a_first") is net.get_submodule("first")
    for name, found in fitted.layers.items():
        ((_, wanted),), ((_, actual),) = (calls(m, name, parts(x)[0]) for m in (model, net))
        assert found.error == pytest.approx(measured(wanted, actual, found.spec.bias), rel=1e-6)


def test_norm_called_twice_keeps_one_mean() -> None:
    class Again(Plain):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.norm(self.first(x)))
            x = torch.relu(self.norm(self.second(x)))
            return self.fourth(torch.relu(self.third(x)))

    model, x = made(Again), images()
    fitted = fit_sequential(model, plan_of(model), batches(x))
    net = apply_(copy.deepcopy(model), fitted)
    for name, found in fitted.layers.items():  # what the later layers were fitted from is the net
        ((_, wanted),), ((_, actual),) = (calls(m, name, parts(x)[0]) for m in (model, net))
        assert found.error == pytest.approx(measured(wanted, actual, found.spec.bias), rel=1e-6)


def test_model_that_mixes_images_is_refused() -> None:
    class Mixed(Plain):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            x = torch.relu(self.norm(self.second(x - x.mean(0))))
            return self.fourth(torch.relu(self.third(x)))

    model = made(Mixed)
    plan = plan_of(model)
    with pytest.raises(DataError, match="Mixed: .* must not depend on the other images .* outputs"):
        fit_sequential(model, plan, batches(images()))
    fit_outputs(model, plan, calibration(model, plan, images()))  # as the message says


def test_layer_that_is_called_image_by_image_is_refused() -> None:
    class Single(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([super(Single, self).forward(one[None])[0] for one in x])

    class Unbatched(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([super(Unbatched, self).forward(one) for one in x])

    unbatched = Unbatched(nn.Conv2d(6, 8, 3), nn.Conv2d(8, 8, 3, bias=False))
    for model in (made(Single), unbatched.double().eval()):
        plan = plan_of(model)
        with pytest.raises(DataError, match=r"must be called with whole batches .* --fit outputs"):
            fit_sequential(model, plan, batches(images()))
        fit_outputs(model, plan, calibration(model, plan, images()))  # as the message says


def test_layer_that_is_not_reached_is_named() -> None:
    class Short(Plain):
        short = False

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) if self.short else super().forward(x)

    model = made(Short)
    plan = plan_of(model)
    model.short = True
    with pytest.raises(DataError, match="second: must be called .* --exclude"):
        fit_sequential(model, plan, batches(images()))


@pytest.mark.parametrize("memory", [0.0, 2e9])
def test_batches_that_take_different_ways_are_refused(memory: float) -> None:
    class Fork(Plain):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            if len(x) != 26:  # the second batch of those fitted to, twice
                x = torch.relu(self.norm(self.second(x)))
            return self.fourth(torch.relu(self.third(x)))

    model = made(Fork)
    with pytest.raises(
        DataError, match="second: every batch .* batch 1 came to third. .* --fit outputs"
    ):
        fit_sequential(model, plan_of(model), batches(images()), memory=memory)


def test_images_that_the_model_does_not_take_are_refused() -> None:
    model = made(Plain)
    plan = plan_of(model)
    with pytest.raises(DataError, match="Plain: .* expected input.* to have 6 channels"):
        fit_sequential(model, plan, [images()[:, :4]])
    with pytest.raises(DataError, match="at least 2"):
        fit_sequential(model, plan, [images(1)])


def test_plan_of_another_model_is_refused() -> None:
    with pytest.raises(PlanError, match="first: no such|first: .* must name"):
        fit_sequential(made(Dense), plan_of(made(Plain)), batches(images()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_model_of_lower_precision_is_fitted_and_keeps_its_dtype(dtype: torch.dtype) -> None:
    model, x = made(Plain), images()
    exact = fit_sequential(model, plan_of(model), batches(x))
    low, x = copy.deepcopy(model).to(dtype), x.to(dtype)
    plan = factorize.make_plan(low, x[:2], rank=0.25, allow_costlier=True)
    fitted = fit_sequential(low, plan, batches(x))
    net = apply_(copy.deepcopy(low), fitted)
    assert all(v.dtype == dtype for v in net.state_dict().values() if v.is_floating_point())
    for name, found in fitted.layers.items():
        assert all(w.dtype == torch.float64 for w in found.weights)
        assert found.error == pytest.approx(exact.layers[name].error, rel=0.1)
    by_weights = apply_(copy.deepcopy(low), fit_weights(low, plan))
    y = output(model, x.double())
    errors = [measured(y, output(m, x).double(), bias=False) for m in (net, by_weights)]
    assert errors[0] < errors[1]


def test_root_and_parametrized_convolutions_are_fitted() -> None:
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))
    nets = nn.Conv2d(6, 8, 3), nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), normed)
    x = images()
    for model in nets:
        model.double().eval()
        fitted = fit_sequential(model, plan_of(model), batches(x))
        net = apply_(copy.deepcopy(model), fitted)
        error = measured(output(model, parts(x)[0]), output(net, parts(x)[0]), bias=True)
        assert list(fitted.layers.values())[-1].error == pytest.approx(error, rel=1e-6)
        assert net is not model


def test_dead_channels_and_repeated_images_are_fitted() -> None:
    model, x = made(Plain), images()
    x[:, 2:] = x[:, :1]  # gray
    x[:] = x[0]  # one and the same
    with torch.no_grad():
        model.first.weight[:4], model.first.bias[:4] = 0, -1
    for found in fit_sequential(model, plan_of(model), batches(x)).layers.values():
        assert all(torch.isfinite(w).all() for w in found.weights)
        assert found.error < 0.7
