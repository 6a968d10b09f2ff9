"""A chain between other nodes computes what it computes alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from factorize.measure.framed_chain import frame_model, framed_model
from factorize.spec import ConvSpec, Size
from factorize.tensor.call import onnx_session


def conv(inputs: int, outputs: int, kernel: Size, **changes: Any) -> ConvSpec:
    ones = (1,) * len(kernel)
    values = {"stride": ones, "padding": (0,) * len(kernel), "dilation": ones} | changes
    kind = values.pop("kind", f"conv{len(kernel)}d" if kernel else "linear")
    return ConvSpec("", kind, inputs, outputs, kernel, **values)


UP: dict[str, Any] = {"kind": "conv_transpose2d", "stride": (2, 2), "output_padding": (0, 0)}
CHAINS: dict[str, tuple[Size, tuple[ConvSpec, ...]]] = {
    "one": ((6, 5), (conv(4, 6, (3, 3)),)),
    "two": ((6, 5), (conv(4, 2, (3, 1)), conv(2, 6, (1, 3)))),
    "strided": ((9, 8), (conv(4, 6, (3, 3), stride=(2, 1), padding=(1, 0)),)),
    "1d": ((9,), (conv(4, 6, (3,)),)),
    "3d": ((4, 3, 5), (conv(4, 6, (3, 3, 3)),)),
    "transposed": ((4, 3), (conv(4, 6, (3, 3), **UP),)),
}  # fmt: skip


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_each_copy_is_there_and_one_value_of_each_channel_comes_out(name: str, int8: bool) -> None:
    size, chain = CHAINS[name]
    model = framed_model(chain, size, 2, 3, int8=int8)
    kinds = [node.op_type for node in onnx.load_from_string(model).graph.node]
    assert sum("Conv" in kind for kind in kinds) == 1 + 3 * len(chain)
    assert kinds.count("MaxPool") == 3
    session = onnx_session(model, 1)
    [given] = session.get_inputs()
    assert given.shape == [2, 1, *size]  # less than a channel of it is read
    x = np.random.default_rng(0).integers(0, 99, given.shape)
    made = session.run(None, {"x": x.astype(np.uint8 if int8 else np.float32)})
    assert [one.shape for one in made] == [(2, 6, *(1,) * len(size))] * 3
    assert made[0].dtype == (np.uint8 if int8 else np.float32)
    assert not np.array_equal(made[0], made[1])  # so that no runtime computes one for all


def test_the_frame_alone_has_no_chain() -> None:
    made = onnx_session(frame_model(4, (6, 5), 2), 1).run(
        None, {"x": np.ones((2, 1, 6, 5), np.float32)}
    )
    assert [one.shape for one in made] == [(2, 4, 1, 1)]


def test_a_linear_layer_needs_no_frame() -> None:
    graph = onnx.load_from_string(framed_model((conv(4, 6, ()),), (3,), 2, 2)).graph
    assert [node.op_type for node in graph.node] == ["MatMul", "Add"] * 2
    assert [one.dim_value for one in graph.input[0].type.tensor_type.shape.dim] == [2, 3, 4]
