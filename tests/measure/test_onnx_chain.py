"""Chains as ONNX models: they compute what torch does, and only their ends are taken off."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from factorize.measure import Target, onnx_chain, runtimes
from factorize.measure.onnx_chain import LARGEST_BLOCK, chain_model
from factorize.measure.torch_chain import conv
from factorize.onnx_graph.chain_nodes import _weight as made_up_weight
from factorize.spec import ConvSpec, Size
from factorize.tensor.call import onnx_session

# torch warns that it pads a copy of the input for 'same' with an even kernel
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

REORDERS = {"ReorderInput", "ReorderOutput"}


def spec(i: int, o: int, kernel: Size, **changes) -> ConvSpec:
    n = len(kernel)
    return replace(
        ConvSpec("", f"conv{n}d", i, o, kernel, (1,) * n, (0,) * n, (1,) * n, bias=False), **changes
    )


def padded(i: int, o: int, **changes) -> ConvSpec:
    return spec(i, o, (3, 3), padding=(1, 1), **changes)


def transposed(i: int, o: int, kernel: Size, **changes) -> ConvSpec:
    kind, none = f"conv_transpose{len(kernel)}d", (0,) * len(kernel)
    return replace(spec(i, o, kernel), kind=kind, **{"output_padding": none, **changes})


def linear(i: int, o: int, **changes) -> ConvSpec:
    return replace(spec(i, o, ()), kind="linear", **changes)


def in_torch(stages: tuple[ConvSpec, ...], x: torch.Tensor, prefix: str) -> torch.Tensor:
    module = nn.Sequential(*map(conv, stages))
    for index, (stage, made) in enumerate(zip(stages, module, strict=True)):
        weight = made_up_weight(stage, f"{prefix}.{index}")
        weight = weight if stage.kernel else weight.T
        made.weight = nn.Parameter(torch.from_numpy(weight))
        if made.bias is not None:
            nn.init.zeros_(made.bias)
    with torch.no_grad():
        return module(x)


def run(model: bytes, x: np.ndarray) -> list[np.ndarray]:
    return onnx_session(model, 1).run(None, {"x": x})


CHAINS = [
    ((9, 11), (padded(3, 8, bias=True),)),
    ((9, 11), (spec(3, 8, (3, 5), stride=(2, 1), padding=(0, 2)), spec(8, 4, (1, 1), bias=True))),
    ((9, 11), (spec(4, 6, (3, 2), dilation=(1, 3), padding=(2, 0)),)),
    ((9, 11), (spec(4, 6, (4, 2), dilation=(1, 3), padding="same", bias=True),)),
    ((9, 11), (spec(4, 6, (4, 3), padding="same", padding_mode="reflect"), padded(6, 5))),
    ((9, 11), (padded(8, 8, groups=4), padded(8, 16, groups=8), spec(16, 3, (1, 1), bias=True))),
    ((9, 11), (spec(4, 6, (5, 3), padding=(2, 1), padding_mode="reflect", stride=(1, 2)),)),
    ((9, 11), (spec(4, 6, (5, 3), padding=(0, 1), padding_mode="replicate", bias=True),)),
    ((9, 11), (spec(4, 6, (5, 3), padding=(2, 1), padding_mode="circular"), padded(6, 2))),
    ((9, 11), (spec(4, 6, (1, 1), padding_mode="circular"),)),
    ((9, 11), (padded(32, 24), padded(24, 32))),
    ((13,), (spec(3, 4, (3,), padding=(1,), stride=(2,)), spec(4, 5, (1,), bias=True))),
    ((13,), (spec(3, 4, (3,), padding=(2,), padding_mode="circular"),)),
    ((9, 11), (transposed(4, 6, (4, 3), stride=(2, 1), padding=(1, 2), bias=True),)),
    (
        (9, 11),
        (
            spec(4, 2, (1, 1)),
            transposed(
                2, 6, (3, 3), stride=(2, 3), groups=2, output_padding=(1, 2), dilation=(2, 1)
            ),
        ),
    ),
    ((13,), (transposed(3, 4, (5,), stride=(3,), bias=True), spec(4, 2, (1,)))),
    ((), (linear(7, 5, bias=True),)),
    ((3, 2), (linear(7, 2), linear(2, 5, bias=True))),
    ((5, 6, 7), (spec(3, 4, (3, 1, 2), padding=(1, 0, 1), stride=(1, 2, 1)),)),
    ((5, 6, 7), (spec(3, 4, (3, 1, 3), padding=(1, 0, 2), padding_mode="replicate"),)),
]


@pytest.mark.parametrize(("size", "stages"), CHAINS)
def test_outputs_are_those_of_torch(monkeypatch, size, stages):
    monkeypatch.setattr(onnx_chain, "_strip", lambda graph, channels: None)
    shape = onnx_chain.input_shape(stages[0], size, 2)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = run(chain_model(stages, size, 2, copies=2), x.numpy())
    assert len(found) == 2
    for copy, ours in enumerate(found):
        wanted = in_torch(stages, x, f"c{copy}")
        assert 0.05 < wanted.std() < 20  # nothing vanishes and nothing overflows
        torch.testing.assert_close(torch.from_numpy(ours), wanted, rtol=1e-4, atol=1e-4)


def blocked(x: np.ndarray, block: int) -> np.ndarray:
    """As the runtime lays it out, its channels filled up with zeros."""
    n, channels, *size = x.shape
    x = np.concatenate([x, np.zeros((n, -channels % block, *size), x.dtype)], axis=1)
    split = x.reshape(n, -1, block, *size)
    return np.ascontiguousarray(np.moveaxis(split, 2, -1)).reshape(x.shape)


@pytest.mark.parametrize(
    "stages",
    [(padded(16, 16),), (padded(32, 20), padded(20, 16)), (spec(48, 16, (1, 1)), padded(16, 24))],
)
def test_without_its_ends_a_chain_is_the_same_in_the_blocked_layout(stages):
    model = chain_model(stages, (6, 7), 1)
    types = {(node.domain, node.op_type) for node in onnx.load_from_string(model).graph.node}
    if ("", "Conv") in types:
        pytest.skip("this processor has no blocked layout")
    assert {kind for _, kind in types} == {"Conv"}
    x = torch.randn(1, stages[0].in_channels, 6, 7, generator=torch.Generator().manual_seed(0))
    wanted = in_torch(stages, x, "c0").numpy()

    def equal(block: int) -> bool:
        [ours] = run(model, blocked(x.numpy(), block))
        theirs = blocked(wanted, block)
        return ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=1e-4, atol=1e-4)

    assert equal(8) or equal(16)


def reordered_graph() -> onnx.GraphProto:
    """Two convolutions that go to the blocked layout and back, with something in between."""
    nodes = [
        helper.make_node("ReorderInput", ["x"], ["a"], "first"),
        helper.make_node("Conv", ["a", "w"], ["b"], "one"),
        helper.make_node("ReorderOutput", ["b"], ["c"], "between 1"),
        helper.make_node("Erf", ["c"], ["d"], "middle"),
        helper.make_node("ReorderInput", ["d"], ["e"], "between 2"),
        helper.make_node("Conv", ["e", "w"], ["f"], "two"),
        helper.make_node("ReorderOutput", ["f"], ["y0"], "last"),
    ]
    value = helper.make_tensor_value_info
    one = [value("x", 1, (1, 16, 2, 2))], [value("y0", 1, (1, 16, 2, 2))]
    return helper.make_graph(nodes, "chain", *one)


@pytest.mark.parametrize("channels", [1, 8, 16, 20, 24, 32])
def test_only_the_ends_are_taken_off(channels):
    graph = reordered_graph()
    onnx_chain._strip(graph, channels)
    whole = channels % LARGEST_BLOCK == 0
    first = [] if whole else ["first"]
    kept = [*first, "one", "between 1", "middle", "between 2", "two"]
    assert [node.name for node in graph.node] == kept
    nodes = {node.name: node for node in graph.node}
    assert list(nodes["one"].input) == ["x" if whole else "a", "w"]
    assert [value.name for value in graph.output] == ["f"]
    assert list(nodes["two"].input) == ["e", "w"]


@pytest.mark.parametrize("channels", [1, 3, 20, 24])
@pytest.mark.parametrize("copies", [1, 3])
def test_other_channel_counts_run(channels, copies):
    stages = (padded(channels, 20), padded(20, channels))
    model = chain_model(stages, (6, 6), 2, copies)
    found = run(model, np.ones((2, channels, 6, 6), np.float32))
    assert len(found) == copies
    assert all(np.isfinite(y).all() for y in found)


@pytest.mark.parametrize("stages", [(padded(16, 16),), (spec(1, 2, (1, 1)), spec(2, 2, (1, 1)))])
def test_the_runtime_makes_no_two_copies_one(stages):
    nodes = onnx.load_from_string(chain_model(stages, (4, 4), 1, copies=4)).graph.node
    weights = [node.input[1] for node in nodes if node.op_type == "Conv"]
    assert len(set(weights)) == len(weights) == 4 * len(stages)


def test_copies_make_a_run_as_long_as_a_nets():
    def copies_of(dense: ConvSpec, size: Size, batch: int) -> int:
        return runtimes.get("onnxruntime").copies(Target(batch=batch), dense, size)

    assert copies_of(padded(8, 8), (4, 4), 1) == 16
    assert copies_of(padded(512, 512), (56, 56), 1) == 1
    middle = padded(64, 64)  # 115.6 million MACs
    assert [copies_of(middle, (56, 56), batch) for batch in (1, 2, 4, 8)] == [4, 2, 1, 1]
    # A linear layer of one sample takes the time of reading its weight.
    wide, narrow = (ConvSpec("", "linear", n, 4096, (), (), (), ()) for n in (4096, 256))
    assert [copies_of(layer, (), 1) for layer in (wide, narrow)] == [1, 11]


def test_runners_and_what_the_runtime_refuses():
    dense = padded(16, 16)
    unfit = (padded(16, 8), padded(12, 16))
    chains = [(dense,), unfit, (padded(16, 4), padded(4, 16))]
    target = Target(threads=1, batch=2)
    first, none, last = runtimes.get("onnxruntime").chain_runs(target, chains, (6, 6))
    assert none is None
    assert first is not None
    assert last is not None
    assert first() > 0
    assert last() > 0
