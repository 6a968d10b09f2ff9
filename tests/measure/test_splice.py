"""Chains spliced into an exported net compute what the net does with those chains in torch."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from factorize import export, methods
from factorize.graph import find
from factorize.measure import Target, splice
from factorize.measure.torch_chain import conv
from factorize.onnx_graph import chain_nodes
from factorize.search import assembled
from factorize.spec import ConvSpec
from factorize.tensor.call import onnx_session
from factorize.types import LayerPlan, Speedup

pytestmark = [
    # torch warns that it pads a copy of the input for 'same' with an even kernel
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    # of torch's exporter, about itself
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Net(nn.Module):
    """Every way in which a convolution's padding, bias and weight reach the ONNX graph."""

    def __init__(self) -> None:
        super().__init__()
        self.zeros = nn.ZeroPad2d((0, 1, 2, 1))  # the exporter merges it with the convolution's
        self.stem = nn.Conv2d(3, 8, 5, (2, 1), padding=(0, 1))
        self.normed = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.left = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")  # these two read one Pad
        self.right = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.around = nn.Conv2d(8, 8, (5, 7), padding=(2, 3), padding_mode="circular")
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.mirror = nn.ReflectionPad2d(1)  # stays, whatever happens to the next one
        self.even = nn.Conv2d(8, 8, (4, 3), padding="same", dilation=(1, 2))
        self.edge = nn.Conv2d(8, 6, (2, 3), padding="same", padding_mode="replicate")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.normed(self.stem(self.zeros(x)))).relu()
        x = x + self.left(x) * self.right(x)
        x = x + self.twice(self.twice(self.around(x)).relu())
        return self.edge(self.even(self.mirror(x)))


LAYERS = ("stem", "normed", "left", "right", "around", "twice", "even", "edge")
CHAINS = [("spatial_svd", 0), ("spatial_svd", -1), ("tucker2", 0), ("cp", 0), ("channel_svd", -1)]


class Exported:
    """A net, its ONNX graph, and its layers."""

    def __init__(self, path: Path) -> None:
        torch.manual_seed(0)
        self.net, self.x = Net().eval(), torch.randn(1, 3, 21, 17)
        nn.init.uniform_(self.net.norm.running_mean, -1, 1)
        nn.init.uniform_(self.net.norm.running_var, 1, 2)
        export.export_onnx(self.net, self.x, path)
        self.onnx = onnx.load(path)
        self.nodes = export.layer_nodes(self.onnx.graph, self.net)
        sites = find(self.net, self.x)
        self.specs = {site.spec.name: site.spec for site in sites}

    def chains(
        self, layers: Iterable[str], method: str, variant: int
    ) -> dict[str, tuple[ConvSpec, ...]]:
        one = methods.get(method)
        return {
            name: one.stages(
                self.specs[name], one.rank_of(3, self.specs[name]), one.variants[variant]
            )
            for name in layers
        }

    def in_torch(self, chains: dict[str, tuple[ConvSpec, ...]]) -> torch.Tensor:
        """The net's output with chains of the made-up weights, and the biases of the graph."""
        net = copy.deepcopy(self.net)
        weights = {w.name: w for w in self.onnx.graph.initializer}
        for name, stages in chains.items():
            module = nn.Sequential(*map(conv, stages)).eval()
            for stage, made in zip(stages, module, strict=True):
                made.weight = nn.Parameter(torch.from_numpy(made_up(stage)))
            node = next(n for n in self.onnx.graph.node if n.name == self.nodes[name][0])
            bias = numpy_helper.to_array(weights[node.input[2]]).copy()
            module[-1].bias = nn.Parameter(torch.from_numpy(bias))
            setattr(net, name, module)
            folded = all(n.op_type != "BatchNormalization" for n in self.onnx.graph.node)
            if name == "normed" and folded:  # what the chain replaces has the norm inside
                net.norm = nn.Identity()
        with torch.no_grad():
            return net(self.x)


def made_up(spec: ConvSpec, name: str = "") -> np.ndarray:
    """The same for all nodes of a layer, unlike the real one."""
    del name
    pool = np.random.default_rng(len(str(spec.weight_shape))).standard_normal(997)
    shape = spec.weight_shape if spec.kernel else spec.weight_shape[::-1]
    return 0.3 * np.resize(pool, shape).astype(np.float32)


def outputs(model: bytes, x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(onnx_session(model, 1).run(None, {"x": x.numpy()})[0])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("net") / "net.onnx")


@pytest.fixture(autouse=True)
def _same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[chain_nodes.__module__], "_weight", made_up)


def assert_as_in_torch(exported: Exported, layers: Iterable[str], method: str, variant: int) -> Any:
    chains = exported.chains(layers, method, variant)
    before = exported.onnx.SerializeToString(deterministic=True)
    model = splice(exported.onnx, exported.nodes, chains)
    assert exported.onnx.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(model, full_check=True)
    wanted = exported.in_torch(chains)
    assert wanted.std() > 1e-3
    torch.testing.assert_close(outputs(model, exported.x), wanted, rtol=1e-3, atol=1e-4)
    return onnx.load_from_string(model).graph


@pytest.mark.parametrize(("method", "variant"), CHAINS)
def test_all_layers_replaced(exported: Exported, method: str, variant: int) -> None:
    graph = assert_as_in_torch(exported, LAYERS, method, variant)
    stages = exported.chains(LAYERS, method, variant)
    nodes = [name for layer in LAYERS for name in exported.nodes[layer]]
    made = [n.name for n in graph.node if n.op_type == "Conv"]
    assert sorted(made) == sorted(
        f"{node}.chain.{index}"
        for layer in LAYERS
        for node in exported.nodes[layer]
        for index in range(len(stages[layer]))
    )
    assert len(nodes) == len(LAYERS) + 1  # one is used twice
    # Nothing that was replaced is left behind.
    read = {name for node in graph.node for name in node.input}
    assert {weight.name for weight in graph.initializer} <= read
    assert {n.output[0] for n in graph.node if n.op_type == "Pad"} <= read


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("method", "variant"), [("spatial_svd", 0), ("tucker2", 0)])
def test_one_layer_replaced(exported: Exported, layer: str, method: str, variant: int) -> None:
    graph = assert_as_in_torch(exported, [layer], method, variant)
    theirs = {w.name: w.SerializeToString() for w in exported.onnx.graph.initializer}
    ours = {w.name: w.SerializeToString() for w in graph.initializer}
    gone = theirs.keys() - ours.keys()
    pads = {name for n in exported.onnx.graph.node if n.op_type == "Pad" for name in n.input[1:]}
    assert all(name.startswith(f"{layer}.") or name in pads for name in gone), gone
    assert f"{layer}.weight" in gone
    assert all(ours[name] == theirs[name] for name in theirs.keys() & ours.keys())
    others = [n for n in exported.onnx.graph.node if n.name not in exported.nodes[layer]]
    kept = [n for n in graph.node if ".chain" not in n.name]
    assert [n for n in others if n.op_type != "Pad"] == [n for n in kept if n.op_type != "Pad"]


def test_layers_that_are_not_there_change_nothing(exported: Exported) -> None:
    chains = {"elsewhere": exported.chains(["left"], "cp", 0)["left"]}
    model = onnx.load_from_string(splice(exported.onnx, exported.nodes, chains))
    assert list(model.graph.node) == list(exported.onnx.graph.node)
    assert list(model.graph.initializer) == list(exported.onnx.graph.initializer)


def test_one_of_two_nodes_of_a_layer(exported: Exported) -> None:
    chains = exported.chains(["twice"], "spatial_svd", 0)
    first, second = exported.nodes["twice"]
    model = splice(exported.onnx, {"twice": [first]}, chains)
    names = {node.name for node in onnx.load_from_string(model).graph.node}
    assert second in names
    assert first not in names
    assert outputs(model, exported.x).isfinite().all()  # its weight is still there


def test_padding_that_is_no_pad_node(exported: Exported) -> None:
    """Older exporters write a circular one as slices: it stays, and the chain does not pad."""
    other = copy.copy(exported)
    other.onnx = onnx.ModelProto()
    other.onnx.CopyFrom(exported.onnx)
    nodes = other.onnx.graph.node
    index = next(i for i, n in enumerate(nodes) if n.name == exported.nodes["around"][0])
    nodes.insert(index, helper.make_node("Identity", [nodes[index].input[0]], ["between"], "id"))
    nodes[index + 1].input[0] = "between"
    graph = assert_as_in_torch(other, ["around"], "tucker2", 0)
    assert "id" in {node.name for node in graph.node}


def test_chains_that_wrap_around_get_an_opset_that_can(exported: Exported) -> None:
    old = onnx.ModelProto()
    old.CopyFrom(exported.onnx)
    old.opset_import[0].version = 18
    chains = exported.chains(["around"], "cp", 0)
    model = onnx.load_from_string(splice(old, exported.nodes, chains))
    assert model.opset_import[0].version >= 19
    assert old.opset_import[0].version == 18


def test_assembled_net_is_the_spliced_one(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is timed against the original is the net with the planned chains."""
    seen = {}

    def speedup(
        target: Target, dense: Path, spliced: Path, x: torch.Tensor, **_: int
    ) -> Speedup | None:
        seen.update(dense=dense, spliced=spliced, target=target)
        return None

    monkeypatch.setattr(assembled, "speedup", speedup)
    monkeypatch.setattr(assembled, "in_units", lambda target, run: (run() * 0 + 2.0, 0.5))
    target = Target(threads=1)
    net = assembled.Assembled(exported.net, exported.x, target)
    assert (net.units, net.unit_ms) == (2.0, 0.5)
    spec = exported.specs["left"]
    net.speedup([LayerPlan(spec, "tucker2", (3, 3))])
    assert seen["target"] is target
    with torch.no_grad():
        dense = exported.net(exported.x)
    torch.testing.assert_close(outputs(seen["dense"], exported.x), dense, rtol=1e-3, atol=1e-4)
    wanted = exported.in_torch(exported.chains(["left"], "tucker2", 0))
    torch.testing.assert_close(outputs(seen["spliced"], exported.x), wanted, rtol=1e-3, atol=1e-4)


class Mixed(nn.Module):
    """Transposed and linear layers, the latter over tokens too."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 6, 4, 2, 1)
        self.tokens, self.head = nn.Linear(6, 9), nn.Linear(9, 5, bias=False)
        self.plain = nn.Linear(5, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(torch.relu(self.down(x))).flatten(2).transpose(1, 2)
        return self.plain(self.head(torch.relu(self.tokens(x)).mean(1)))


def test_other_kinds_are_spliced_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Mixed().eval(), torch.randn(1, 3, 12, 8)
    export.export_onnx(net, x, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    nodes = export.layer_nodes(model.graph, net)
    assert set(nodes) == {"down", "up", "tokens", "head", "plain"}
    for site in find(net, x):
        one = methods.get("channel_svd")
        stages = one.stages(site.spec, (3,), one.variants[0])
        replaced = copy.deepcopy(net)
        module = nn.Sequential(*map(conv, stages)).eval()
        for stage, made in zip(stages, module, strict=True):
            weight = made_up(stage)
            made.weight = nn.Parameter(torch.from_numpy(weight if stage.kernel else weight.T))
        module[-1].bias = net.get_submodule(site.spec.name).bias
        setattr(replaced, site.spec.name, module)
        made = splice(model, nodes, {site.spec.name: stages})
        (ours,) = onnx_session(made, 1).run(None, {model.graph.input[0].name: x.numpy()})
        with torch.no_grad():
            wanted = replaced(x)
        torch.testing.assert_close(torch.from_numpy(ours), wanted, rtol=1e-4, atol=1e-5)
