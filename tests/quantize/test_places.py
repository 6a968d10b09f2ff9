"""Which layers compute in integers, and which values are rounded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from onnx_files import node, random, save
from rounding_nets import made_net
from simulating import images_of

from factorize.onnx_graph import Twin
from factorize.quantize.places import places_of
from factorize.quantize.source import twin_and_batches

WANTED = {  # values that are rounded, by net
    "conv_relu": "x r y",  # the ReLU is done by the rounding behind it
    "clip": "x r y",
    "relu_then_float": "x r",
    "residual": "x r c t y",
    "concat": "x a c s y",
    "silu": "x a s r y",
    "leaky": "x a r y",
    "hard swish": "x a r y",
    "max pool": "x a r y",
    "read_output": "x a r y",  # the graph gives it out before the ReLU
    "gemms": "x r c",  # the last one gives floats
    "matmul": "x s",  # the sum with a constant is in float
    "transposed": "x r c y",
    "channels_last": "x r y",
    "batch_norms": "x r c e y",
}
REASONS = {
    "transposed": {"up": "the runtime has no integer ConvTranspose"},
    "shared": {
        "c": "its weight is used 2 times in the file",
        "d": "its weight is used 2 times in the file",
    },
}


def twin_of_file(path: Path) -> Twin:
    return twin_and_batches(path, [images_of(path, 1)])[0]


@pytest.mark.parametrize("name", WANTED)
def test_values_between_layers_in_integers_are_rounded(tmp_path: Path, name: str) -> None:
    found = places_of(twin_of_file(made_net(tmp_path / "net.onnx", name)))
    assert found.values == {*WANTED[name].split()}
    assert found.left == REASONS.get(name, {})


@pytest.mark.parametrize("name", ["max pool", "identity", "global_pool"])
def test_what_rearranges_values_has_their_grid(tmp_path: Path, name: str) -> None:
    found = places_of(twin_of_file(made_net(tmp_path / "net.onnx", name)))
    assert found.same == ({"f": "p"} if name == "global_pool" else {"r": "a"})


def test_what_is_excluded_stays_in_float(tmp_path: Path) -> None:
    twin = twin_of_file(made_net(tmp_path / "net.onnx", "residual"))
    found = places_of(twin, exclude={"c": "slow"})
    assert found.left == {"c": "slow"}
    assert found.layers == ("a", "y")
    assert found.values == {"x", "r", "t", "y"} - {"r"} | {"r"}


def test_a_layer_that_reads_a_constant_stays(tmp_path: Path) -> None:
    nodes = [node("Conv", "k w", "a"), node("Conv", "x w2", "c"), node("Add", "a c", "y")]
    weights = {"k": random(1, 3, 1, 1), "w": random(4, 3, 1, 1), "w2": random(4, 3, 1, 1)}
    found = places_of(twin_of_file(save(tmp_path / "net.onnx", nodes, weights)))
    assert found.layers == ("c",)
    assert found.left == {"a": "its input is a constant"}


def test_batch_norms_are_folded_where_nothing_else_reads_the_convolution(tmp_path: Path) -> None:
    path = made_net(tmp_path / "net.onnx", "batch_norms")
    twin, x = twin_of_file(path), images_of(path)
    with torch.no_grad():
        wanted = twin(**x)
        found = places_of(twin)
        assert found.folded == {"a": "n"}
        assert [step.kind for step in twin.onnx_steps].count("BatchNormalization") == 1
        assert torch.allclose(twin(**x), wanted, rtol=1e-4, atol=1e-4)
        excluded = twin_of_file(path)
        assert places_of(excluded, exclude={"a": "slow"}).folded == {}
