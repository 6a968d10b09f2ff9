"""The grids that values are rounded to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor

from factorize.quantize.grid import Grid, grid_of
from factorize.tensor.call import onnx_session

VALUES: dict[str, Tensor] = {
    "normal": torch.randn(4000, generator=torch.Generator().manual_seed(0)),
    "positive": torch.rand(4000, generator=torch.Generator().manual_seed(0)) + 3,
    "negative": -torch.rand(4000, generator=torch.Generator().manual_seed(0)) - 3,
    "long tails": torch.randn(10**5, generator=torch.Generator().manual_seed(0)).pow(3),
    "constant": torch.full((10,), 0.7),
    "zeros": torch.zeros(10),
    "tiny": torch.linspace(-1e-30, 1e-30, 9),
    "huge": torch.linspace(-1e30, 1e30, 9),
}


@pytest.mark.parametrize("name", VALUES)
def test_zero_is_a_value_and_no_value_is_further_than_half_a_step_from_where_it_is_clipped(
    name: str,
) -> None:
    values = VALUES[name]
    grid = grid_of([values])
    assert 0 <= grid.zero <= 255
    assert float(np.float32(grid.scale)) == grid.scale > 0
    assert float(grid.rounded(torch.zeros(1))) == 0
    low, high = -grid.zero * grid.scale, (255 - grid.zero) * grid.scale
    assert float(values.min()) >= -1e-6 or low <= 0
    apart = (grid.rounded(values).double() - values.double().clamp(low, high)).abs().max()
    assert float(apart) <= 0.5001 * grid.scale


@pytest.mark.parametrize("name", VALUES)
def test_error_is_at_most_that_from_minimum_to_maximum(name: str) -> None:
    values = VALUES[name].double()
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = max((high - low) / 255, 2.0**-60)
    whole = Grid(float(np.float32(scale)), round(-low / scale))

    def error(grid: Grid) -> float:
        return float((grid.rounded(values) - values).square().mean())

    found = error(grid_of([VALUES[name][:5], VALUES[name][5:]]))
    assert found <= error(whole) * (1 + 1e-6)
    if name == "long tails":
        assert found < 0.9 * error(whole)


@settings(max_examples=20)
@given(
    st.integers(-20, 20).map(lambda n: 1.37 * 2.0**n), st.integers(0, 255),
    st.lists(st.one_of(st.integers(-600, 600).map(lambda n: n / 2), st.floats(-300, 300)),
             min_size=1, max_size=40),
)  # fmt: skip
def test_codes_are_those_of_the_runtime_ties_too(
    scale: float, zero: int, steps: list[float]
) -> None:
    grid = Grid(float(np.float32(scale)), zero)
    x = (torch.tensor(steps, dtype=torch.float64) * grid.scale).float()
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    graph = helper.make_graph(
        [node], "codes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [len(x)]),
         helper.make_tensor_value_info("s", TensorProto.FLOAT, []),
         helper.make_tensor_value_info("z", TensorProto.UINT8, [])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [len(x)])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    feeds = {"x": x.numpy(), "s": np.array(grid.scale, np.float32), "z": np.array(zero, np.uint8)}
    (theirs,) = onnx_session(model.SerializeToString(), 1).run(None, feeds)
    assert np.array_equal(theirs, grid.codes(x).numpy().astype(np.uint8))


def test_ties_go_to_the_even_code() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    assert Grid(1.0, 100).codes(x).tolist() == [100, 102, 102, 100, 98]
