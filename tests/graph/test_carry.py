"""What a user has put on a layer is on the chain that takes its place, and on what follows that."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rewriting import X, assert_same_function, conv, full
from torch import nn
from torch.nn.utils import parametrizations, prune

import factorize
from factorize import graph
from factorize.graph.carry import extras
from factorize.graph.spec_of import KINDS

Rewrite = Callable[[nn.Module, factorize.Plan], nn.Module]
ways = pytest.mark.parametrize(
    "rewrite",
    [factorize.rewrite, factorize.rewrite_, lambda m, p: factorize.rewrite(copy.deepcopy(m), p)],
    ids=["copy", "in place", "copy of a copy"],
)


class Routed(nn.Module):
    """Sends the outputs of its layers on as their attributes say, as YOLO's nets do."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleList(conv() for _ in range(4))
        for number, layer in enumerate(self.model):
            layer.i, layer.f, layer.type, layer.np = number, -1, "Conv2d", 584
        self.model[3].f = [-1, 0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: list[torch.Tensor] = []
        for layer in self.model:
            if isinstance(layer.f, list):
                x = x + made[layer.f[1]]
            x = layer(x)
            made.append(x)
        return x


@ways
def test_attributes_of_a_user_are_on_the_chain(rewrite: Rewrite) -> None:
    model = Routed()
    reference, plan = copy.deepcopy(model), full(model)
    assert len(plan.factorized) == 4
    made = rewrite(model, plan)
    assert_same_function(reference, made)
    for layer, dense in zip(made.model, reference.model, strict=True):
        assert type(layer) is nn.Sequential
        assert {name: vars(layer)[name] for name in extras(layer)} == {
            "i": dense.i, "f": dense.f, "type": "Conv2d", "np": 584}  # fmt: skip
    again = graph.collapse_(copy.deepcopy(made), plan)
    assert [layer.i for layer in again.model] == [0, 1, 2, 3]
    assert [layer.f for layer in again.model] == [-1, -1, -1, [-1, 0]]
    assert_same_function(reference, again)


@pytest.mark.parametrize("cls", [*KINDS, nn.Sequential])
def test_nothing_of_torchs_own_is_taken_for_a_users(cls: Any) -> None:
    layer = cls() if cls is nn.Sequential else cls(4, 4, 1)
    layer.register_full_backward_hook(lambda *_: None)
    layer.compile(backend="eager")
    assert extras(layer.requires_grad_(False).eval()) == []
    layer.mine = 1
    assert extras(layer) == ["mine"]


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "prune"])
def test_what_weights_are_computed_by_is_no_attribute(kind: str) -> None:
    layer = conv()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old ones say so
        if kind == "prune":
            prune.random_unstructured(layer, "weight", 0.5)
        else:
            getattr(nn.utils, kind)(layer)
    layer(X)
    assert extras(layer) == []
    model = nn.Sequential(layer)
    seen: list[nn.Module] = []
    layer.register_forward_pre_hook(lambda module, _: seen.append(module))
    made = factorize.rewrite(model, full(model))
    assert len(made[0]._forward_pre_hooks) == 1
    made(X)
    assert seen[-1] is made[0]
    assert_same_function(model, made)


def test_modules_kept_beside_stay_beside() -> None:
    """Registered in a chain, they would be run as its stages."""
    model = nn.Sequential(conv())
    vars(model[0])["other"] = nn.ReLU()
    made = factorize.rewrite(model, full(model))
    assert len(made[0]) == 2
    assert isinstance(made[0].other, nn.ReLU)


class Called:
    """Hooks that note what they see."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, type]] = []

    def __call__(self, kind: str) -> Any:
        return lambda module, *_: self.seen.append((kind, type(module)))

    def on(self, layer: nn.Module) -> list[Any]:
        return [
            layer.register_forward_pre_hook(self("before")),
            layer.register_forward_pre_hook(self("before, named"), with_kwargs=True),
            layer.register_forward_hook(self("after")),
            layer.register_forward_hook(self("after, always"), with_kwargs=True, always_call=True),
            layer.register_full_backward_pre_hook(self("backward, before")),
            layer.register_full_backward_hook(self("backward")),
        ]


@ways
def test_hooks_are_on_the_chain(rewrite: Rewrite) -> None:
    model, called = nn.Sequential(conv(), nn.ReLU()), Called()
    handles = called.on(model[0])
    plan = full(model)
    assert plan.layers[0].notes == ("6 hook(s) on the layer are on its chain",)
    made = rewrite(model, plan)
    called.seen.clear()
    made(X.clone().requires_grad_()).sum().backward()
    assert called.seen == [
        (kind, nn.Sequential)
        for kind in ("before", "before, named", "after", "after, always", "backward, before",
                     "backward")
    ]  # fmt: skip
    if made is model:  # a copy has hooks of its own, as any copy of a module
        for handle in handles:
            handle.remove()
        called.seen.clear()
        made(X).sum().backward()
        assert called.seen == []


def test_layer_that_is_left_behind_is_apart_from_its_chain() -> None:
    """What a run hangs on the one is not on the other."""
    model, called = nn.Sequential(layer := conv()), Called()
    handles = called.on(layer)
    plan = full(model)
    made = factorize.rewrite_(model, plan)
    made[0].register_forward_hook(called("mine"))
    called.seen.clear()
    layer(X)
    assert [kind for kind, _ in called.seen] == [
        "before",
        "before, named",
        "after",
        "after, always",
    ]
    for handle in handles:
        handle.remove()
    assert len(layer._forward_hooks) == 2
    assert len(made[0]._forward_hooks) == 1


def test_looking_leaves_the_hooks_to_their_handles() -> None:
    model, called = nn.Sequential(conv()), Called()
    handles = called.on(model[0])
    factorize.find(model, X)
    for handle in handles:
        handle.remove()
    assert not model[0]._forward_hooks
    assert not model[0]._forward_pre_hooks


def test_always_called_hook_is_called_when_the_chain_fails() -> None:
    model, called = nn.Sequential(conv()), Called()
    called.on(model[0])
    made = factorize.rewrite(model, full(model))
    called.seen.clear()
    with pytest.raises(RuntimeError):
        made(X[:, :3])
    assert called.seen[-1] == ("after, always", nn.Sequential)


def test_hook_that_changes_the_output_changes_that_of_the_chain() -> None:
    model = nn.Sequential(conv(), conv())
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    model[1].register_forward_pre_hook(lambda module, args: (args[0] - 1,))
    made = factorize.rewrite(model, full(model))
    assert_same_function(model, made)
    assert_same_function(model, graph.collapse_(copy.deepcopy(made), full(model)))


def test_layer_with_a_hook_is_fitted_in_sequence_to_its_own_output() -> None:
    """Else the chain would do what the hook does, and the hook do it again."""
    torch.manual_seed(0)
    model = nn.Sequential(conv(), nn.ReLU(), conv()).eval()
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    images = [(torch.randn(16, 8, 10, 10),) for _ in range(4)]
    data = factorize.Data(images, images, None, labelled=False, classes=None, source="noise")
    for how in ("outputs", "sequential"):
        made = factorize.rewrite(
            model, full(model), data=data, config=factorize.FitConfig(how=how, images=64)
        )
        assert_same_function(model, made)


def test_backward_hook_of_the_old_kind_is_dropped_and_told() -> None:
    model = nn.Sequential(conv())
    model[0].register_backward_hook(lambda *_: None)
    plan = full(model)
    assert plan.layers[0].notes == (
        "1 hook(s) by register_backward_hook, which cannot see a chain, dropped",
    )
    made = factorize.rewrite(model, plan)
    made[0].register_full_backward_hook(lambda *_: None)  # the two kinds exclude each other


def test_module_used_twice_has_its_hooks_once() -> None:
    model, called = nn.Sequential(layer := conv(), nn.ReLU(), layer), Called()
    layer.register_forward_hook(called("after"))
    layer.mine = object()
    made = factorize.rewrite_(model, full(model))
    assert made[0] is made[2]
    called.seen.clear()
    made(X)
    assert called.seen == [("after", nn.Sequential)] * 2
    assert made[0].mine is layer.mine


@ways
def test_weights_are_laid_out_as_they_were(rewrite: Rewrite) -> None:
    model = nn.Sequential(
        conv(), parametrizations.weight_norm(conv()), nn.ConvTranspose2d(8, 8, 3)
    ).to(memory_format=torch.channels_last)
    model.append(conv())
    plan = full(model, method="tucker2", include=["*"])
    assert len(plan.factorized) == 4
    made = rewrite(model, plan)
    for number, layer in enumerate(made):
        weights = [stage.weight for stage in layer if stage.kernel_size != (1, 1)]
        assert weights
        for weight in weights:
            last = weight.is_contiguous(memory_format=torch.channels_last)
            assert (last, weight.is_contiguous()) == (number < 3, number == 3)
    again = graph.collapse_(copy.deepcopy(made), plan)
    layouts = [one.weight.is_contiguous(memory_format=torch.channels_last) for one in again]
    assert layouts == [True, True, True, False]


def test_volumes_are_laid_out_as_they_were() -> None:
    layout = torch.channels_last_3d
    model = nn.Sequential(nn.Conv3d(8, 8, 3)).to(memory_format=layout)
    x = torch.randn(1, 8, 5, 5, 5)
    made = factorize.rewrite(model, full(model, x, method="tucker2"))
    weights = [stage.weight for stage in made[0] if stage.kernel_size != (1, 1, 1)]
    assert weights
    assert all(weight.is_contiguous(memory_format=layout) for weight in weights)
    assert not any(weight.is_contiguous() for weight in weights)
