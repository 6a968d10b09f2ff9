"""Fits of whole networks, held to what the networks compute when they are run."""

import copy
import gc
from collections.abc import Callable, Iterator
from typing import Any

import convolutions
import pytest
import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

import factorize
from factorize import calibrate
from factorize.errors import DataError, PlanError
from factorize.fit import Fitted, apply_, fit_outputs, fit_sequential, fit_weights
from factorize.fit import sequential as sequential_module
from factorize.fit.lockstep import Lockstep
from factorize.tensor.moments import Calibration
from factorize.types import Plan

ALL = convolutions.square()


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


SHORTCUTS = {"convs.3": ("convs.4", "norms.3"), "convs.1": ("convs.2", "")}
"""Of `Residual`: the last layer of a branch, the first one that reads the other, the norm."""


class Dense(nn.Module):
    """Each layer reads all that came before; called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(6 + 6 * i, 6, 3, padding=1) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.cat((x, torch.relu(conv(input=x))), 1)
        return x


class Branches(nn.Module):
    """Two branches, joined, and two outputs beside a number that is of no image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(6, 8, 3, bias=False)
        self.left, self.right = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 6, (1, 5), 1, (0, 2))
        self.top = nn.Conv2d(12, 8, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = torch.relu(self.stem(x))
        both = torch.cat((torch.relu(self.right(x)), torch.tanh(self.left(x))), 1)
        return {"map": self.top(both), "mean": both.mean((1, 2, 3)), "scale": torch.tensor(2.0)}


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


class Tied(nn.Module):
    """Two modules with one weight and a bias each, on maps of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.two.weight = self.one.weight
        self.top = nn.Conv2d(6, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(torch.relu(self.two(nn.functional.avg_pool2d(self.one(x), 2) + 1)))


class Deep(nn.Sequential):
    """Eight layers."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for index in range(8):
            layers += [nn.Conv2d(6 if index == 0 else 10, 10, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(10), nn.ReLU()]
        super().__init__(*layers)


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


def paused_passes() -> list[greenlet]:
    """Forward passes that stand still somewhere, with all that they hold."""
    passes = [found for found in gc.get_objects() if type(found) is greenlet]
    return [found for found in passes if found and found is not getcurrent()]


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
    plan = factorize.plan(model, images(2), method=method, rank=rank, allow_costlier=True)
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


def joined(maps: list[Tensor]) -> Tensor:
    """Maps of several sizes as one, (1, O, 1, positions)."""
    return torch.cat([y.detach().movedim(1, 0).flatten(1) for y in maps], 1)[None, :, None]


def parts(x: Tensor) -> tuple[Tensor, Tensor]:
    fit, held_out = calibrate.split(batches(x))
    return torch.cat(fit), torch.cat(held_out)


def output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


@pytest.fixture(autouse=True)
def no_pass_is_left() -> Iterator[None]:
    yield
    assert not paused_passes()


NETS = [Plain, Residual, Dense, Branches]
every_net = pytest.mark.parametrize("kind", NETS)


@every_net
@pytest.mark.parametrize("method", ["spatial_svd", "cp"])
def test_errors_of_outputs_are_those_of_the_chains_when_run(
    kind: type[nn.Module], method: str
) -> None:
    model, x = made(kind), images()
    plan = plan_of(model, method)
    fitted = fit_outputs(model, plan, calibration(model, plan, x))
    assert list(fitted.layers) == [layer.spec.name for layer in plan.factorized]
    net = apply_(copy.deepcopy(model), fitted)
    for name, found in fitted.layers.items():
        chain, bias = net.get_submodule(name), found.spec.bias
        for part, error in zip(parts(x), (found.error, found.held_out_error), strict=True):
            ((inputs, wanted),) = calls(model, name, part)
            assert error == pytest.approx(measured(wanted, output(chain, inputs), bias), rel=1e-6)
            assert 1e-4 < error < 1
        if bias:
            ((inputs, wanted),) = calls(model, name, parts(x)[0])
            mean = output(chain, inputs).mean((0, 2, 3))
            assert torch.allclose(mean, wanted.mean((0, 2, 3)), atol=1e-9)


def wanted_in_sequence(model: nn.Module, net: nn.Module, name: str, x: Tensor) -> Tensor:
    """The original's output; before a shortcut, what makes up for the shortcut's loss too."""
    ((_, wanted),) = calls(model, name, x)
    source, norm = SHORTCUTS.get(name, ("", ""))
    if not (source and isinstance(model, Residual)):
        return wanted
    ((original, _),), ((compressed, _),) = calls(model, source, x), calls(net, source, x)
    lost = original - compressed
    if norm:  # undone
        module = model.get_submodule(norm)
        gain = module.weight / (module.running_var + module.eps).sqrt()
        lost = lost / gain.detach()[:, None, None]
    return wanted + lost


@every_net
@pytest.mark.parametrize("method", ["spatial_svd", "cp"])
def test_errors_of_sequential_are_those_in_the_compressed_net(
    kind: type[nn.Module], method: str
) -> None:
    model, x = made(kind), images()
    plan = plan_of(model, method)
    fitted = fit_sequential(model, plan, batches(x))
    assert set(fitted.layers) == {layer.spec.name for layer in plan.factorized}
    net = apply_(copy.deepcopy(model), fitted)
    for name, found in fitted.layers.items():
        for part, error in zip(parts(x), (found.error, found.held_out_error), strict=True):
            wanted, ((_, actual),) = (
                wanted_in_sequence(model, net, name, part),
                calls(net, name, part),
            )
            assert error == pytest.approx(measured(wanted, actual, found.spec.bias), rel=1e-6), name


@every_net
def test_sequential_hands_on_the_means_of_the_original(kind: type[nn.Module]) -> None:
    model, x = made(kind), images()
    fitted = fit_sequential(model, plan_of(model), batches(x))
    net, (fit, _) = apply_(copy.deepcopy(model), fitted), parts(x)
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert set(fitted.means) == norms
    corrected = [n for n, found in fitted.layers.items() if found.spec.bias]
    assert corrected
    for name in (*corrected, *norms):
        wanted, ((_, actual),) = wanted_in_sequence(model, net, name, fit), calls(net, name, fit)
        assert torch.allclose(actual.mean((0, 2, 3)), wanted.mean((0, 2, 3)), atol=1e-9), name
        assert not torch.allclose(actual, wanted, atol=1e-3)


@pytest.mark.parametrize("method", ALL)
def test_each_way_of_fitting_beats_the_one_that_knows_less(method: str) -> None:
    model, x = made(Deep), images(60)
    plan = plan_of(model, method, 0.2)
    by_weights = fit_weights(model, plan)
    by_outputs = fit_outputs(model, plan, calibration(model, plan, x))
    by_sequence = fit_sequential(model, plan, batches(x))
    new = images(30, seed=5)
    errors = []
    for fitted in (by_weights, by_outputs, by_sequence):
        net = apply_(copy.deepcopy(model), fitted)
        errors.append(measured(output(model, new), output(net, new), bias=False))
    assert errors[1] < errors[0]
    assert errors[2] < errors[1]


def test_sequential_of_one_layer_is_the_fit_of_its_output() -> None:
    model, x = made(Plain), images()
    plan = factorize.plan(model, x[:2], rank=0.25, include=["first"], allow_costlier=True)
    plan = Plan(tuple(layer for layer in plan.layers if layer.spec.name == "first"), {})
    one = fit_outputs(model, plan, calibration(model, plan, x)).layers["first"]
    two = fit_sequential(model, plan, batches(x)).layers["first"]
    assert two.error == pytest.approx(one.error, rel=1e-6)
    assert two.held_out_error == pytest.approx(one.held_out_error, rel=1e-6)
    assert one.bias is not None
    assert two.bias is not None
    assert torch.allclose(one.bias, two.bias, atol=1e-6)


@pytest.mark.parametrize("name", ["2", "3"])
def test_sequential_of_other_axes_is_the_fit_of_the_output(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(6, 6, 1), nn.Flatten(2), nn.Conv1d(6, 8, 3), nn.Linear(142, 5)
    ).double()
    x = images()
    plan = factorize.plan(
        model, x[:2], rank=2, method="channel_svd", include=[name], allow_costlier=True
    )
    one = fit_outputs(model, plan, calibration(model, plan, x)).layers[name]
    two = fit_sequential(model, plan, batches(x)).layers[name]
    assert two.error == pytest.approx(one.error, rel=1e-6)
    assert two.bias is not None
    assert torch.allclose(one.bias, two.bias, atol=1e-6)


def fits(model: nn.Module, plan: Plan, x: Tensor) -> dict[str, Fitted]:
    return {
        "outputs": fit_outputs(model, plan, calibration(model, plan, x)),
        "sequential": fit_sequential(model, plan, batches(x)),
    }


@pytest.mark.parametrize("way", ["outputs", "sequential"])
def test_module_called_twice_is_fitted_to_the_sum_of_its_uses(way: str) -> None:
    model, x = made(Twice), images()
    plan = plan_of(model)
    fitted = fits(model, plan, x)[way]
    found = fitted.layers["again"]
    chain = apply_(copy.deepcopy(model), fitted).get_submodule("again")
    for part, error in zip(parts(x), (found.error, found.held_out_error), strict=True):
        uses = calls(model, "again", part)
        assert len(uses) == 2
        y = joined([out for _, out in uses])
        y2 = joined([output(chain, inputs) for inputs, _ in uses])
        assert error == pytest.approx(measured(y, y2, bias=True), rel=1e-6)
        if part is parts(x)[0]:
            assert torch.allclose(y.mean(3), y2.mean(3), atol=1e-9)
    if way == "sequential":  # what comes after is fitted to what the net with it hands on
        net, top = apply_(copy.deepcopy(model), fitted), fitted.layers["top"]
        ((_, wanted),), ((_, actual),) = (calls(m, "top", parts(x)[0]) for m in (model, net))
        assert top.error == pytest.approx(measured(wanted, actual, bias=True), rel=1e-6)


@pytest.mark.parametrize("way", ["outputs", "sequential"])
def test_modules_of_one_weight_stay_tied(way: str) -> None:
    model, x = made(Tied), images()
    fitted = fits(model, plan_of(model), x)[way]
    one, two = fitted.layers["one"], fitted.layers["two"]
    assert all(torch.equal(a, b) for a, b in zip(one.weights, two.weights, strict=True))
    net = apply_(copy.deepcopy(model), fitted)
    for a, b in zip(net.get_submodule("one"), net.get_submodule("two"), strict=True):
        assert a.weight is b.weight
    wanted, actual = [], []
    for name in ("one", "two"):  # each without the bias that it had
        ((inputs, out),) = calls(model, name, parts(x)[0])
        bias = model.get_submodule(name).bias[:, None, None]
        wanted.append(out - bias)
        actual.append(output(net.get_submodule(name), inputs) - bias)
    error = measured(joined(wanted), joined(actual), bias=True)
    assert one.error == two.error == pytest.approx(error, rel=1e-6)
    assert net.one[-1].bias is not net.two[-1].bias


@pytest.mark.parametrize("kind", [Plain, Residual, Twice])
@pytest.mark.parametrize("memory", [0.0, 4e5])
def test_little_memory_takes_longer_and_gives_the_same(
    kind: type[nn.Module], memory: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = made(kind), images()
    plan = plan_of(model)
    runs = []
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: (runs.append(len(x)), forward(self, x))[1])
    whole = fit_sequential(model, plan, batches(x))
    at_once = len(runs)
    low = fit_sequential(model, plan, batches(x), memory=memory)
    assert len(runs) - at_once > at_once
    for name, one in whole.layers.items():
        two = low.layers[name]
        assert (one.error, one.held_out_error) == (two.error, two.held_out_error)
        assert all(torch.equal(a, b) for a, b in zip(one.weights, two.weights, strict=True))
    assert all(torch.equal(whole.means[name], low.means[name]) for name in low.means)


def test_activations_held_by_a_paused_batch_are_counted() -> None:
    model, x = made(Plain), images(1)
    with Lockstep(model, {"first": model.get_submodule("first")}, [x], 0.0) as lockstep:
        held = lockstep._held_per_image()
    assert held == 2 * (6 + 8) * 12 * 12 * 8  # input and output, in both networks, in float64


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


def state(model: nn.Module) -> list[Any]:
    """All that a fit might leave behind in a model."""
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), m.training)
        for m in model.modules()
    ]
    return [*hooks, *((n, v._version, v.sum().item()) for n, v in model.state_dict().items())]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("where", ["fit", "sums", "forward", "example", "open"])
@pytest.mark.parametrize("memory", [0.0, 2e9])
def test_model_is_not_changed_whatever_happens(
    error: type[BaseException] | None, where: str, memory: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = made(Residual), images()
    model.train()
    model.convs[2].eval()
    before, flags = copy.deepcopy(model.state_dict()), state(model)
    plan = plan_of(model)

    def failing(function: Callable[..., Any], when: Callable[..., bool]) -> Callable[..., Any]:
        count = [0]

        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if error and when(count[0], args):
                raise error("stop here")
            return function(*args, **kwargs)

        return call

    target, name, when = {
        "fit": (sequential_module, "fit_layer", lambda count, args: count == 3),
        "sums": (sequential_module.MomentSums, "add", lambda count, args: count == 12),
        "forward": (Residual, "forward", lambda count, args: len(args[1]) == 26),
        "example": (Residual, "forward", lambda count, args: len(args[1]) == 2),
        "open": (sequential_module.Lockstep, "_start", lambda count, args: count == 2),
    }[where]
    monkeypatch.setattr(target, name, failing(getattr(target, name), when))
    if error is None:
        fit_sequential(model, plan, batches(x), memory=memory)
    else:
        with pytest.raises((error, DataError)):
            fit_sequential(model, plan, batches(x), memory=memory)
    assert not paused_passes()
    assert state(model) == flags
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


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


@pytest.mark.parametrize("memory", [0.0, 2e9])
def test_modes_that_the_model_switches_on_stay_in_the_model(memory: float) -> None:
    class Inference(Plain):
        @torch.inference_mode()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    class Cast(Plain):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu"):
                return super().forward(x)

    for kind in (Inference, Cast):
        model = made(kind).float()
        before = state(model)
        x = images().float()
        fitted = fit_sequential(model, plan_of(made(Plain)), batches(x), memory=memory)
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")
        assert torch.is_grad_enabled()
        weights = [weight for found in fitted.layers.values() for weight in found.weights]
        assert not any(weight.is_inference() for weight in weights)
        assert state(model) == before


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
    plan = factorize.plan(low, x[:2], rank=0.25, allow_costlier=True)
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


@pytest.mark.parametrize("way", ["weights", "outputs", "sequential"])
def test_progress_counts_the_layers(way: str) -> None:
    model, x = made(Twice), images()
    plan, told = plan_of(model), []

    def progress(stage: str, done: int, total: int, values: dict[str, float]) -> None:
        told.append((stage, done, total))

    if way == "weights":
        fit_weights(model, plan, progress=progress)
    elif way == "outputs":
        fit_outputs(model, plan, calibration(model, plan, x), progress=progress)
    else:
        fit_sequential(model, plan, batches(x), progress=progress)
    assert told[-1] == ("factorize", 3, 3)
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})
