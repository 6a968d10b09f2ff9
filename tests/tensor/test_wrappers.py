"""Compiled and parallel models are taken out of what wraps them; what is no model is named."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import factorize
from factorize.errors import FactorizeError, ModelLoadError, UnsupportedLayerError
from factorize.tensor.wrappers import check_module, prepared, unwrap

X = torch.randn(2, 8, 10, 10, generator=torch.Generator().manual_seed(0))
NAMES = ["features.0", "features.2", "head"]


class Net(nn.Module):
    """A body and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features: nn.Module = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
        )
        self.head: nn.Module = nn.Conv2d(8, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


def fails(*_: object) -> Any:
    raise AssertionError("compiled")


def refusing(module: nn.Module) -> nn.Module:
    """Compiled so that running it compiled is an error."""
    return torch.compile(module, backend=lambda *_: fails())  # type: ignore[return-value]


def distributed(module: nn.Module) -> nn.Module:
    """In DistributedDataParallel as far as one process without a group can have it."""
    made = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(made)
    made.module = module
    return made


def compiled_itself(module: nn.Module) -> nn.Module:
    module.compile(backend=lambda *_: fails())
    return module


def inside(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[Net], nn.Module]:
    def wrapped(net: Net) -> nn.Module:
        net.features, net.head = wrap(net.features), wrap(net.head)
        return net

    return wrapped


WRAPPED = {
    "plain": lambda net: net,
    "compiled": refusing,
    "compiled itself": compiled_itself,
    "parallel": nn.DataParallel,
    "distributed": distributed,
    "compiled, parallel": lambda net: nn.DataParallel(refusing(net)),
    "parallel, compiled": lambda net: refusing(nn.DataParallel(net)),
    "parts compiled": inside(refusing),
    "parts compiled themselves": inside(compiled_itself),
    "parts parallel": inside(nn.DataParallel),
    "parts distributed": inside(distributed),
    "all compiled": lambda net: refusing(inside(refusing)(net)),
}
wrapped = pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())


@wrapped
def test_every_step_takes_them(wrap: Callable[[Net], nn.Module], tmp_path: Path) -> None:
    net, model = Net(), wrap(Net())
    assert [site.spec.name for site in factorize.find(model, X)] == NAMES
    plan = factorize.make_plan(model, X, rank=1.0, allow_costlier=True)
    assert len(plan.factorized) == 3
    made = factorize.rewrite(model, plan)
    assert type(made) is Net
    assert [type(made.get_submodule(name)) for name in NAMES] == [nn.Sequential] * 3
    with torch.no_grad():
        assert torch.allclose(made(X), net(X), atol=1e-5)
    found = factorize.measure_quality(model, made, X)
    assert found["relative_difference"] < 1e-4
    images = [torch.randn(4, *X.shape[1:]) for _ in range(4)]
    student = wrap(factorize.rewrite(Net(), plan))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    config = factorize.FinetuneConfig(1, lr=0.01, may_stay=False)
    factorize.finetune(student, model, images, config)
    moved = [not torch.equal(value, before[name]) for name, value in student.state_dict().items()]
    assert any(moved)
    assert unwrap(model) is factorize.rewrite_(model, plan)
    with torch.no_grad():
        assert torch.allclose(unwrap(model)(X), net(X), atol=1e-5)


@wrapped
def test_looking_leaves_them_as_they_are(wrap: Callable[[Net], nn.Module]) -> None:
    model = wrap(Net())
    modules = list(model.named_modules())
    compiled = [m._compiled_call_impl for m in model.modules()]
    factorize.rewrite(model, factorize.make_plan(model, X, rank=2))
    assert list(model.named_modules()) == modules
    assert [m._compiled_call_impl for m in model.modules()] == compiled


@wrapped
def test_compress_tells_of_it(wrap: Callable[[Net], nn.Module]) -> None:
    model = wrap(Net())
    result = factorize.compress(model, X, rank=2, latency=False)
    assert type(result.model) is Net
    assert result.report.model == "Net"
    _, notes = prepared(model)
    told = [note for note in result.report.notes if "as the model was" in note]
    assert told == list(notes)
    assert bool(told) is not (wrap is WRAPPED["plain"])


@pytest.mark.parametrize("kind", ["parts compiled", "compiled, parallel"])
def test_they_are_exported_as_what_is_inside(kind: str, tmp_path: Path) -> None:
    model = WRAPPED[kind](Net())
    factorize.export_program(model, X, tmp_path / "net.pt2")
    with torch.no_grad():
        found = torch.export.load(tmp_path / "net.pt2").module()(X)
        assert torch.allclose(found, Net()(X), atol=1e-5)
    factorize.export_onnx(model, X, tmp_path / "net.onnx")


def test_notes_name_the_wrappers() -> None:
    again = "as the model was: wrap it again"
    assert prepared(Net())[1] == ()
    assert prepared(WRAPPED["compiled, parallel"](Net()))[1] == (
        "the result is not compiled, as the model was: compile it again",
        f"the result is not in a DataParallel, {again}",
    )
    assert prepared(WRAPPED["parts distributed"](Net()))[1] == (
        f"the result is not in a DistributedDataParallel, {again}",
    )


def test_copy_shares_the_weights_and_what_is_shared_stays_shared() -> None:
    model = Net()
    model.features[2] = torch.compile(model.features[0])
    model.head.mine = [model.features]
    made, _ = prepared(model)
    assert made is not model
    assert made.features[0] is made.features[2]
    assert made.head.mine[0] is made.features
    assert made.head.weight is model.head.weight
    assert model.features[2] is not model.features[0]


def test_model_without_wrappers_is_itself() -> None:
    model = Net()
    assert prepared(model)[0] is model
    assert prepared(model, in_place=True)[0] is model


def test_in_place_the_layers_are_the_models_own() -> None:
    model = WRAPPED["parts compiled"](Net())
    weight = model.head.weight
    made, _ = prepared(model, in_place=True)
    assert made is model
    assert type(model.head) is nn.Conv2d
    assert model.head.weight is weight


def test_decorated_parts_are_not_compiled_to_look() -> None:
    class Decorated(Net):
        @torch.compile(backend=lambda *_: fails())
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    assert [site.blocked for site in factorize.find(Decorated(), X)] == [None] * 3


def test_what_cannot_be_copied_is_told() -> None:
    model = compiled_itself(Net())
    model.lock = (number for number in range(3))
    with pytest.raises(UnsupportedLayerError, match=r"Net: .* copy.deepcopy can copy"):
        factorize.find(model, X)
    prepared(model, in_place=True)
    factorize.find(model, X)


class FullyShardedDataParallel(nn.Module):
    """Stands for torch's, which needs several processes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class FSDPModule:
    """What `fully_shard` adds to a module's class."""


def sharded(net: Net) -> nn.Module:
    net.features.__class__ = type("FSDPSequential", (FSDPModule, nn.Sequential), {})
    return net


def exported() -> Any:
    return torch.export.export(Net(), (X,))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: "model.pt", "a path or name, 'model.pt'. Load the module first"),
        (lambda: Path("a/model.pt"), "a path or name, 'a/model.pt'"),
        (lambda: torch.jit.trace(Net(), X), r"TorchScript \(TopLevelTracedModule\)"),
        (lambda: torch.jit.script(Net()), r"TorchScript \(RecursiveScriptModule\)"),
        (lambda: torch.jit.trace(torch.relu, X), r"TorchScript \(ScriptFunction\)"),
        (lambda: nn.DataParallel(torch.jit.trace(Net(), X)), "TorchScript"),
        (exported, r"an exported program \(torch.export\)"),
        (lambda: exported().module(), r"an exported program \(torch.export\)"),
        (lambda: FullyShardedDataParallel(Net()), r"sharded \(FullyShardedDataParallel\)"),
        (lambda: nn.Sequential(FullyShardedDataParallel(Net())), "FullyShardedDataParallel"),
        (lambda: sharded(Net()), r"sharded \(FSDPModule\)"),
        (lambda: Net().state_dict(), "a OrderedDict. A state dict has weights and no net"),
        (lambda: {"model": Net()}, "a dict"),
        (lambda: Net, "the class Net. Give an instance of it"),
        (lambda: Net().forward, "the method forward of one. Give the module itself"),
        (lambda: torch.relu, r"a function \(relu\)"),
        (lambda: functools.partial(torch.relu), r"a function \(partial\)"),
        (lambda: lambda x: x, r"a function \(<lambda>\)"),
        (lambda: None, "a builtins.NoneType"),
        (lambda: torch.ones(3), "a torch.Tensor"),
    ],
)
def test_what_is_no_model_is_named(make: Callable[[], Any], told: str) -> None:
    model = make()
    with pytest.raises(ModelLoadError, match=rf"^model: must be an nn.Module, got .*{told}") as one:
        check_module(model) if not isinstance(model, nn.DataParallel) else prepared(model)
    assert "\n" not in str(one.value)
    plan = factorize.Plan((), {})
    for step in (
        lambda: factorize.find(model, X),
        lambda: factorize.make_plan(model, X, rank=2),
        lambda: factorize.rewrite(model, plan),
        lambda: factorize.rewrite_(model, plan),
        # Without a model it is built.
        *([] if model is None else [lambda: factorize.load("folder", model)]),
        lambda: factorize.measure_quality(model, Net(), X),
        lambda: factorize.measure_quality(Net(), model, X),
        lambda: factorize.compress(model, X, rank=2),
    ):
        with pytest.raises(FactorizeError) as other:
            step()
        assert str(other.value) == str(one.value)


def test_traced_graphs_with_layers_are_models() -> None:
    """Of torch.fx, which keeps modules."""
    model = torch.fx.symbolic_trace(Net())
    plan = factorize.make_plan(model, X, rank=1.0, allow_costlier=True)
    made = factorize.rewrite(copy.deepcopy(model), plan)
    assert len(plan.factorized) == 3
    with torch.no_grad():
        assert torch.allclose(made(X), model(X), atol=1e-5)
