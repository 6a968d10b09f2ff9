"""The int8 file as ONNX Runtime runs it is the simulation, step by step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from rounding_nets import NETS, made_net
from simulating import images_of, rounded, steps_apart

from factorize.quantize import quantize_onnx
from factorize.tensor.call import onnx_session


@pytest.mark.parametrize("name", NETS)
def test_file_equals_the_simulation_to_one_step_of_each_value(tmp_path: Path, name: str) -> None:
    path = made_net(tmp_path / "net.onnx", name)
    made, proto = rounded(path)
    assert made.layers
    form = made.twin.onnx_form
    batch = 1 if form.one_by_one else form.batch or 2
    apart = steps_apart(made, proto, images_of(path, batch, seed=1))
    assert apart
    floats = {n: d for n, d in apart.items() if n not in made.grids}
    assert max(apart[n] for n in made.grids) <= 1
    assert all(d <= (1 if n.split(" ")[0] in made.grids else 1e-4) for n, d in floats.items())


@pytest.mark.parametrize("name", ["conv_relu", "cp_chain", "residual", "concat", "gemms", "silu"])
def test_each_scale_is_used(tmp_path: Path, name: str) -> None:
    """Some output changes with any one scale, or code of 0, that the file has.

    As the file has it: once fused, a bias is in the units of what is multiplied, whatever it says.
    """
    path = made_net(tmp_path / "net.onnx", name)
    _, proto = rounded(path)
    given = {n: v.numpy() for n, v in images_of(path, 4, seed=1).items()}

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL

    def run() -> list[np.ndarray]:
        return onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, given)

    exact = run()
    found = [t for t in proto.graph.initializer if t.name.rsplit("_", 1)[1] in _GRID]
    assert len(found) > 2 * len(proto.graph.input)
    for tensor in found:
        kept, array = tensor.SerializeToString(), numpy_helper.to_array(tensor)
        moved = array * np.float32(1.5) if array.dtype == np.float32 else array ^ np.uint8(128)
        tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
        apart = [np.abs(a - b).max() for a, b in zip(exact, run(), strict=True)]
        assert max(apart) > 0, tensor.name
        tensor.ParseFromString(kept)


_GRID = ("scale", "scales", "zero")


@pytest.mark.parametrize("name", NETS)
def test_the_runtime_computes_layers_in_integers(tmp_path: Path, name: str) -> None:
    """Not in float, on weights that it dequantizes at each run."""
    made, proto = rounded(made_net(tmp_path / "net.onnx", name))
    fused = tmp_path / "fused.onnx"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(fused)
    options.log_severity_level = 3  # it is for this machine alone
    onnxruntime.InferenceSession(proto.SerializeToString(), options)
    kinds = [node.op_type for node in onnx.load(fused).graph.node]
    assert sum(kind in _IN_INTEGERS for kind in kinds) == len(made.layers)


_IN_INTEGERS = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat")


@pytest.mark.parametrize("name", NETS)
def test_what_is_written_is_near_the_float_net(tmp_path: Path, name: str) -> None:
    path, out = made_net(tmp_path / "net.onnx", name), tmp_path / "int8.onnx"
    check = quantize_onnx(path, out, [images_of(path)])
    assert check.difference == pytest.approx(check.simulated, rel=0.1, abs=1e-3)
    assert check.simulated < 0.05
    assert all(loss < 0.02 for loss in check.losses.values())
    assert check.bytes == out.stat().st_size
    assert check.images == 12
    before, after = onnx.load(path), onnx.load(out)
    assert [v.name for v in after.graph.input] == [v.name for v in before.graph.input]
    assert [v.name for v in after.graph.output] == [v.name for v in before.graph.output]
    assert after.metadata_props == before.metadata_props
    weights = {t.name for t in after.graph.initializer if t.data_type == TensorProto.FLOAT}
    kept = weights & {t.name for t in before.graph.initializer}
    read = {one for node in after.graph.node for one in node.input}
    assert kept <= read  # no float weight lies about unread


def test_weights_that_an_old_file_lists_among_its_inputs_are_gone_from_there(
    tmp_path: Path,
) -> None:
    path, out = made_net(tmp_path / "net.onnx", "conv_relu", ir_version=3), tmp_path / "int8.onnx"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    onnx.save(model, path)
    given = {"x": images_of(made_net(tmp_path / "other.onnx", "conv_relu"))["x"]}
    quantize_onnx(path, out, [given])
    assert [value.name for value in onnx_session(out, 1).get_inputs()] == ["x"]


def test_data_beside_the_file_comes_into_it(tmp_path: Path) -> None:
    path, out = made_net(tmp_path / "net.onnx", "matmul"), tmp_path / "int8.onnx"
    given = images_of(path)
    quantize_onnx(path, out, [given])
    feeds = {name: value.numpy() for name, value in given.items()}
    (inside,) = onnx_session(out, 1).run(None, feeds)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="d", size_threshold=0)
    quantize_onnx(path, out, [given], force=True)
    (tmp_path / "d").unlink()
    assert np.array_equal(onnx_session(out, 1).run(None, feeds)[0], inside)
