"""Chains in an exported file: as many nodes as stages, one after the other."""

from __future__ import annotations

import exporting
import pytest
import torch
from exporting import CHAINS, Net, chain
from torch import nn

from factorize.errors import ExportError
from factorize.export import export_onnx


@pytest.fixture
def net() -> Net:
    return exporting.net()


@pytest.fixture
def x() -> torch.Tensor:
    return exporting.image()


def test_a_chain_that_is_the_root(x, tmp_path):
    model = chain(3, 4)
    assert export_onnx(model, x, tmp_path / "a.onnx", chains={"": 2}).nodes == {"Conv": 2}
    with pytest.raises(ExportError, match=r"the model itself.*3 Conv"):
        export_onnx(model, x, tmp_path / "b.onnx", chains={"": 3})


def test_a_chain_of_transposed_convolutions(x, tmp_path):
    model = nn.Sequential(
        nn.ConvTranspose2d(3, 3, (3, 1), (2, 1), bias=False), nn.ConvTranspose2d(3, 4, (1, 3))
    )
    check = export_onnx(model, x, tmp_path / "a.onnx", chains={"": 2})
    assert check.nodes == {"ConvTranspose": 2}


def test_a_chain_of_other_nodes_is_not_taken_for_a_constant(x, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Sigmoid()))
    with pytest.raises(ExportError, match="2 layer nodes in a row.*got Relu, Sigmoid"):
        export_onnx(model, x, tmp_path / "a.onnx", chains={"1": 2})
    assert not list(tmp_path.iterdir())


def test_a_chain_shared_by_two_names(net, x, tmp_path):
    net.bn1 = net.conv1
    check = export_onnx(net, x, tmp_path / "net.onnx", chains=CHAINS | {"bn1": 2})
    assert check.nodes["Conv"] == 1 + 4 + 4


def test_chains_with_one_weight(net, x, tmp_path):
    net.conv2 = chain(8, 8)
    for ours, theirs in zip(net.conv2, net.conv1, strict=True):
        ours.weight = theirs.weight
    export_onnx(net, x, tmp_path / "net.onnx", chains=CHAINS)


class Interrupted(nn.Sequential):
    def forward(self, x):
        return self[1](torch.relu(self[0](x)))


class Trailed(nn.Sequential):
    def forward(self, x):
        return torch.relu(super().forward(x))


class Tapped(nn.Sequential):
    def forward(self, x):
        middle = self[0](x)
        return self[1](middle) + middle.mean()


@pytest.mark.parametrize(
    ("layer", "stages", "message"),
    [
        (chain(8, 8), 3, "conv1: must be 3 Conv nodes .* got 2 modules"),
        (nn.Sequential(chain(8, 8)[0], nn.ReLU(), chain(8, 8)[1]), 3, "got Relu after its Conv 0"),
        (nn.Sequential(*chain(8, 8), nn.ReLU()), 3, "got .* after its Conv 1"),
        (nn.Sequential(*chain(8, 8), nn.Sigmoid()), 2, "got 3 modules"),
        (Interrupted(*chain(8, 8)), 2, "got Relu after its Conv 0"),
        (Trailed(*chain(8, 8)), 2, "got Relu among them"),
        (Tapped(*chain(8, 8)), 2, "got .*ReduceMean.* after its Conv 0"),
    ],
)
def test_a_chain_of_anything_but_convolutions_is_refused(net, x, tmp_path, layer, stages, message):
    net.conv1 = layer
    with pytest.raises(ExportError, match=message):
        export_onnx(net, x, tmp_path / "net.onnx", chains={"conv1": stages})
    assert not list(tmp_path.iterdir())


def test_a_chain_that_is_never_called_is_refused(net, x, tmp_path):
    net.unused = chain(8, 8)
    with pytest.raises(ExportError, match=r"unused: .*never calls it"):
        export_onnx(net, x, tmp_path / "net.onnx", chains={"unused": 2})


def test_a_chain_of_a_constant_may_become_one(x, tmp_path):
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3)
            self.bias = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 8))
            self.register_buffer("table", torch.randn(1, 2))

        def forward(self, x):
            return self.stem(x) + self.bias(self.table)[..., None, None]

    check = export_onnx(Positions(), x, tmp_path / "net.onnx", chains={"bias": 2})
    assert check.nodes.keys() <= {"Conv", "Add"}


def test_a_padding_node_is_allowed_only_where_conv_cannot_pad(net, x, tmp_path):
    net.conv1 = nn.Sequential(net.conv1[0], nn.ReflectionPad2d(1), nn.Conv2d(3, 8, (3, 3)))
    net.conv1[2].padding = (0, 0)
    with pytest.raises(ExportError, match="got Pad after its Conv 0"):
        export_onnx(net, x, tmp_path / "net.onnx", chains={"conv1": 3})


# torch warns that it pads a copy of the input
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_same_padding_with_an_even_kernel(net, x, tmp_path):
    net.conv1 = nn.Sequential(
        nn.Conv2d(8, 3, (4, 1), padding="same"), nn.Conv2d(3, 8, (1, 4), padding="same")
    )
    export_onnx(net, x, tmp_path / "net.onnx", chains={"conv1": 2})


class Halves(nn.Module):
    """Splits a tensor that was changed in place: the exporter slices it anew where it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.part = nn.Conv2d(3, 16, 3), nn.Sequential(*chain(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = nn.functional.silu(self.both(x), inplace=True).split(8, dim=1)
        return torch.cat((left, nn.functional.silu(self.part(right), inplace=True)), 1)


def test_what_leads_to_a_chain_is_not_in_it(tmp_path):
    check = export_onnx(
        Halves().eval(), torch.randn(1, 3, 12, 12), tmp_path / "m.onnx", chains={"part": 2}
    )
    assert check.nodes["Conv"] == 3
