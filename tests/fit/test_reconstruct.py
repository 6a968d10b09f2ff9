"""Blocks whose factors are tuned together on what the blocks put out in the original."""

import copy
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from photographs import FEW, X, data_of, distance, net, photographs
from torch import Tensor, nn

import factorize
from factorize import calibrate
from factorize.fit import Fitted, apply_, fit_remarks, fit_sequential, reconstruct
from factorize.types import Data

# torch.export's own deprecations, and accelerate's on a machine without a GPU.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning:torch|accelerate|onnxscript")]


@pytest.fixture(scope="module")
def data() -> Data:
    return data_of(photographs())


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("factorize.fit.reconstruct"), "STEPS", 40)


def flat(layers: int = 7) -> nn.Sequential:
    """Convolutions with batch norms one after the other; the first one stays dense."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for i in range(layers):
        norm = nn.BatchNorm2d(8)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        parts += [nn.Conv2d(8 if i else 3, 8, 3, padding=1, bias=False), norm, nn.ReLU()]
    return nn.Sequential(*parts).eval()


def reconstructed(
    model: nn.Module, images: list[Tensor], **options: Any
) -> tuple[Fitted, Fitted, list[tuple[int, int]]]:
    """The fit before and after, and the progress that was told."""
    before = fit_sequential(model, factorize.make_plan(model, X, rank=2), images)
    steps: list[tuple[int, int]] = []
    after = reconstruct(
        model, before, images, progress=lambda _, *now: steps.append(now[:2]), **options
    )
    return before, after, steps


def moved(before: Fitted, after: Fitted) -> set[str]:
    """Names of layers with other weights."""
    return {
        name
        for name, made in after.layers.items()
        if not torch.equal(made.weights[0].float(), before.layers[name].weights[0].float())
    }


@pytest.mark.usefixtures("unhurried")
def test_reconstruction_brings_the_outputs_closer_and_is_told(data: Data) -> None:
    options = {"rank": 3, "data": data, "latency": False, "device": "cpu"}
    plain, tuned = (
        factorize.compress(net(), X, fit=replace(FEW, reconstruct=wanted), **options)
        for wanted in (False, True)
    )
    notes = [[n for n in one.report.notes if "as a whole" in n] for one in (plain, tuned)]
    assert not notes[0]
    assert [note.endswith("2 block(s) were tuned as a whole") for note in notes[1]] == [True]
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


@pytest.mark.usefixtures("unhurried")
def test_reconstruction_leaves_alone_what_is_no_block() -> None:
    model, images = Unusual().eval(), list(photographs().split(20))
    before, after, steps = reconstructed(model, images)
    assert set(before.layers) == {
        "parting.conv", "joining.conv", "listed.0", "plain.0", "plain.2",
    }  # fmt: skip
    assert steps == [(1, 1)]
    assert moved(before, after) == {"plain.0", "plain.2"}


@pytest.mark.usefixtures("few_steps")
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
        plan = factorize.make_plan(model, X, rank=3)
        before = fit_sequential(model, plan, images)
        after = reconstruct(model, before, images)
        name = "inner.2.0"
        assert not torch.allclose(
            after.layers[name].weights[0], before.layers[name].weights[0], rtol=1e-3
        )
        assert not any(p.requires_grad for p in apply_(copy.deepcopy(model), after).parameters())


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("inner", [False, True])
def test_a_long_sequence_is_tuned_a_few_layers_at_a_time(inner: bool) -> None:
    model = nn.Sequential(flat(), nn.Flatten()).eval() if inner else flat()
    images, others = list(photographs(120)[:80].split(20)), photographs(120)[80:]
    before, after, steps = reconstructed(model, images)
    assert steps == [(1, 2), (2, 2)]  # four layers and two
    assert moved(before, after) == set(before.layers)
    far, near = (
        distance(apply_(copy.deepcopy(model), fitted), model, others) for fitted in (before, after)
    )
    assert near < far


@pytest.mark.usefixtures("few_steps")
def test_a_run_ends_before_a_block_and_before_a_layer_that_is_called_twice() -> None:
    again = nn.Conv2d(8, 8, 3, padding=1)
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Tanh())
    model = nn.Sequential(*flat(3), block, again, nn.ReLU(), again, *flat(2)[3:]).eval()
    before, after, steps = reconstructed(model, list(photographs().split(20)))
    assert set(before.layers) == {"3", "6", "9.0", "10", "12", "13"} - {"12"}
    assert steps == [(1, 3), (2, 3), (3, 3)]  # 3 and 6, the block, 13
    assert moved(before, after) == {"3", "6", "9.0", "13"}


class Indexed(nn.Module):
    """Calls the layers of a sequence itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = flat()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Shortcuts(nn.Module):
    """Holds the layers of a sequence, in which they do not follow each other."""

    def __init__(self) -> None:
        super().__init__()
        for name, layer in flat().named_children():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        x, *layers = self.get_submodule("0")(x), *list(self.children())[1:]
        for layer in layers:
            x = x + layer(x)
        return x


class Halves(nn.Module):
    """A sequence that puts out two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = flat()
        self.layers.append(Parting())

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.layers(x)
        return one + other


@pytest.mark.parametrize("kind", [Indexed, Shortcuts, Halves])
def test_layers_that_are_no_sequence_from_tensor_to_tensor_are_left_alone(
    kind: type[nn.Module],
) -> None:
    before, after, steps = reconstructed(kind().eval(), list(photographs().split(20)))
    assert steps == []
    assert not moved(before, after)
    assert [note for note in fit_remarks("sequential", after) if "tuned nothing" in note]


class Turn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1)


def test_what_is_not_made_for_each_image_is_not_tuned() -> None:
    model = nn.Sequential(nn.Sequential(*flat(3), Turn()), Turn()).eval()
    before, after, _ = reconstructed(model, list(photographs().split(20)))
    assert not moved(before, after)


@pytest.mark.usefixtures("few_steps")
def test_a_run_gets_what_the_tuned_ones_before_it_make(monkeypatch: pytest.MonkeyPatch) -> None:
    module, model = import_module("factorize.fit.reconstruct"), flat()
    tune, images = module._tune, list(photographs().split(20))
    arrived: dict[str, list[Tensor]] = {}
    parts: dict[str, nn.Module] = {}

    def noted(part: nn.Module, block: Any, arrivals: Any, *rest: Any) -> None:
        seen = list(arrivals())
        arrived[block.start] = [arrival.compressed.clone() for arrival in seen]
        parts[block.start] = copy.deepcopy(part)
        tune(part, block, lambda: iter(seen), *rest)

    monkeypatch.setattr(module, "_tune", noted)
    before, after, _ = reconstructed(model, images)
    assert before.means
    fitted, tuned = copy.deepcopy(model), copy.deepcopy(model)
    apply_(fitted, before)
    apply_(tuned, after)
    fit, held_out = calibrate.split(images)
    with torch.no_grad():
        for start, seen in arrived.items():
            for batch, x in zip([*fit, *held_out], seen, strict=True):
                torch.testing.assert_close(tuned[: int(start)](batch), x)
        x, first = arrived["3"][0], slice(3, 15)  # four convolutions with what follows them
        torch.testing.assert_close(parts["3"](x), fitted[first](x))


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("memory", [2e9, 1e3])
def test_blocks_are_tuned_on_what_there_is_memory_for(
    monkeypatch: pytest.MonkeyPatch, memory: float
) -> None:
    drawn = set()
    randint: Callable[..., Tensor] = torch.randint

    def noted(high: int, *args: Any, **options: Any) -> Tensor:
        drawn.add(high)
        return randint(high, *args, **options)

    monkeypatch.setattr(torch, "randint", noted)
    images = list(photographs().split(20))
    reconstructed(flat(3), images, memory=memory)
    fit, _ = calibrate.split(images)
    assert drawn == {sum(map(len, fit)) if memory == 2e9 else len(fit)}
