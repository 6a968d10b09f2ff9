"""A compressed twin as an ONNX file: chains where layers were, all else byte for byte as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from onnx_files import apart, external, image, net, node, random, run, save, twin_of, written

from factorize.errors import ExportError, OutputError
from factorize.export import into_onnx
from factorize.export.onnx_back import export_back
from factorize.onnx_graph.onnx_file import external_info, is_external
from factorize.run.make_plan import make_plan
from factorize.run.steps import rewrite
from factorize.tensor.call import onnx_session


def touched(before: Path, after: Path) -> set[str]:
    """What is not byte for byte in the new file: nodes by their output, tensors by their name."""
    old, new = (
        onnx.load(before, load_external_data=False),
        onnx.load(after, load_external_data=False),
    )
    nodes = [{n.output[0]: n.SerializeToString(deterministic=True) for n in m.graph.node}
             for m in (old, new)]  # fmt: skip
    tensors = [{t.name: _bytes(t, path) for t in m.graph.initializer}
               for m, path in ((old, before), (new, after))]  # fmt: skip
    changed = {key for one, two in (nodes, tensors) for key in one if two.get(key) != one[key]}
    known = {v.name for v in old.graph.input} - changed  # older files list weights there
    for one in (old, new):
        kept = [v for v in one.graph.input if v.name in known]
        for field in ("node", "initializer", "input"):
            one.graph.ClearField(field)
        one.graph.input.extend(kept)
    assert old.SerializeToString(deterministic=True) == new.SerializeToString(deterministic=True)
    return changed


def _bytes(tensor: Any, path: Path) -> bytes:
    whole = tensor.SerializeToString(deterministic=True)
    if is_external(tensor):
        info = external_info(tensor)
        data = (path.parent / info.location).read_bytes()
        whole += data[info.offset : info.offset + (info.length or 0)]
    return whole


def constants(path: Path) -> Path:
    model = onnx.load(net(path))
    tensors = [*model.graph.initializer]
    del model.graph.initializer[:]
    for index, one in enumerate(tensors):
        model.graph.node.insert(index, helper.make_node("Constant", [], [one.name], value=one))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("form", [net, constants, external])
def test_what_is_not_replaced_is_byte_for_byte_what_it_was(
    tmp_path: Path, form: Callable[[Path], Path]
) -> None:
    path, out = form(tmp_path / "net.onnx"), tmp_path / "out" / "net.onnx"
    written(path, out, image(), rank=4, include=["f", "block.even"], method="tucker2")
    assert touched(path, out) == {"f", "same.weight", "c", "even.weight"}
    model = onnx.load(out)
    assert [n.op_type for n in model.graph.node if n.op_type != "Constant"] == [
        "Conv", "Relu", "Conv", "Conv", "Conv", "BatchNormalization", "Relu", "Conv", "Conv",
        "Conv", "Relu", "ConvTranspose", "GlobalAveragePool", "Flatten", "Gemm", "MatMul", "Add",
    ]  # fmt: skip
    assert {"c", "f"} <= {n.output[0] for n in model.graph.node if n.op_type == "Conv"}
    inside = onnx.load(out, load_external_data=False).graph.initializer
    assert all(is_external(t) == (form is external) for t in inside)


def test_one_node_touched_more_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above sees a single attribute of a single node."""
    path, out = net(tmp_path / "net.onnx"), tmp_path / "out" / "net.onnx"
    replace = into_onnx._Writer.replace

    def more(self: Any, *args: Any) -> None:
        replace(self, *args)
        next(n for n in self.nodes if n.output[0] == "g").doc_string = "touched"

    monkeypatch.setattr(into_onnx._Writer, "replace", more)
    written(path, out, image(), rank=4, include=["f"])
    assert touched(path, out) == {"f", "same.weight", "g"}


def test_data_beside_the_file_keeps_its_place_and_holes_are_filled(tmp_path: Path) -> None:
    path, out = external(tmp_path / "net.onnx"), tmp_path / "out" / "net.onnx"
    written(path, out, image(), rank=2, include=["f"])
    assert apart(path, out, image()) > 1e-3
    before, after = ((p.parent / "net.data").stat().st_size for p in (path, out))
    assert after == before  # the chain is where the weight was


def test_data_beside_the_file_ends_with_the_last_tensor(tmp_path: Path) -> None:
    path, out = tmp_path / "net.onnx", tmp_path / "out" / "net.onnx"
    save(path, [node("Conv", "x w", "y", "conv")], {"w": random(16, 3, 3, 3)})
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location="net.data", size_threshold=0
    )
    written(path, out, image(), rank=2)
    whole = sum(len(numpy_helper.to_array(t).tobytes()) for t in onnx.load(out).graph.initializer)
    assert whole <= (out.parent / "net.data").stat().st_size < whole + 128


def test_tensors_that_a_fit_or_tuning_moved_are_written(tmp_path: Path) -> None:
    path, out, x = net(tmp_path / "net.onnx"), tmp_path / "net2.onnx", image()
    twin = twin_of(path, x)
    plan = make_plan(twin, x, rank=4, include=["f"])
    small = rewrite(twin, plan)
    with torch.no_grad():
        small.get_submodule("norm").running_mean += 0.5
        small.get_submodule("first/Conv").bias += 1
        small.get_submodule("last").weight *= 2
        small.get_submodule("f")[-1].bias += 1
        export_back(twin, small, plan, x, out)
        np.testing.assert_allclose(run(out, x)[0], small(x).numpy(), rtol=1e-5, atol=1e-5)
    assert touched(path, out) == {
        "f", "same.weight", "same.bias", "mean", "first.bias", "last.weight",
    }  # fmt: skip


def test_a_moved_tensor_that_others_read_too_becomes_another(tmp_path: Path) -> None:
    weights = {"w": random(3, 3, 3, 3), "v": random(3, 3, 3, 3), "b": random(3)}
    nodes = [node("Conv", "x w b", "a", "one"), node("Conv", "a v b", "y", "two")]
    path, out, x = save(tmp_path / "net.onnx", nodes, weights), tmp_path / "net2.onnx", image()
    twin = twin_of(path, x)
    plan = make_plan(twin, x, rank=1, include=["one"], allow_costlier=True)
    small = rewrite(twin, plan)
    with torch.no_grad():
        small.get_submodule("two").bias += 1
        export_back(twin, small, plan, x, out)
        np.testing.assert_allclose(run(out, x)[0], small(x).numpy(), rtol=1e-5, atol=1e-5)
    assert touched(path, out) == {"a", "w", "y"}  # two reads another tensor; b is there for one


CONVS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride": {"strides": [2, 3], "pads": [1, 1, 1, 1]},
    "dilation": {"dilations": [2, 1], "pads": [2, 1, 2, 1]},
    "groups": {"group": 2},
    "asymmetric": {"pads": [0, 2, 1, 0], "strides": [2, 1]},
    "upper": {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "lower": {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
    "upper, no stride": {"auto_pad": "SAME_UPPER"},
    "valid": {"auto_pad": "VALID"},
}


@pytest.mark.parametrize("kernel", [(3, 3), (4, 5)])
@pytest.mark.parametrize("method", ["spatial_svd", "tucker2", "depthwise_pointwise"])
@pytest.mark.parametrize("attributes", CONVS.values(), ids=CONVS.keys())
def test_full_rank_for_every_attribute(
    tmp_path: Path, attributes: dict[str, Any], method: str, kernel: tuple[int, int]
) -> None:
    weights = {"w": random(6, 4 // attributes.get("group", 1), *kernel, scale=0.2), "b": random(6)}
    nodes = [node("Conv", "x w b", "y", "conv", **attributes)]
    inputs = {"x": ("N", 4, "H", "W")}
    path = save(tmp_path / "net.onnx", nodes, weights, inputs=inputs, opset=10)
    plan = written(path, tmp_path / "out.onnx", image(1, 4, 13, 12), method=method)
    assert plan.factorized
    for size in ((1, 4, 13, 12), (2, 4, 16, 15)):
        assert apart(path, tmp_path / "out.onnx", image(*size)) < 1e-5
    if attributes == CONVS["asymmetric"]:  # each axis' padding is at the stage that has the axis
        pads = [a.ints for n in onnx.load(tmp_path / "out.onnx").graph.node for a in n.attribute
                if a.name == "pads"]  # fmt: skip
        assert np.sum(pads, axis=0).tolist() == [0, 2, 1, 0]
        assert (method == "spatial_svd") == (sum(any(one) for one in pads) == 2)


TRANSPOSED: dict[str, dict[str, Any]] = {
    "stride": {"strides": [2, 3], "pads": [1, 1, 1, 1], "output_padding": [1, 2]},
    "asymmetric": {"strides": [2, 2], "pads": [0, 1, 1, 0]},
    "groups": {"group": 2, "dilations": [1, 2]},
}


@pytest.mark.parametrize("method", ["spatial_svd", "channel_svd"])
@pytest.mark.parametrize("attributes", TRANSPOSED.values(), ids=TRANSPOSED.keys())
def test_full_rank_of_transposed_ones(
    tmp_path: Path, attributes: dict[str, Any], method: str
) -> None:
    weights = {"w": random(4, 6 // attributes.get("group", 1), 3, 4, scale=0.2)}
    nodes = [node("ConvTranspose", "x w", "y", "conv", **attributes)]
    path = save(tmp_path / "net.onnx", nodes, weights, inputs={"x": ("N", 4, "H", "W")})
    plan = written(path, tmp_path / "out.onnx", image(1, 4, 7, 8), method=method)
    assert plan.factorized
    for size in ((1, 4, 7, 8), (3, 4, 9, 6)):
        assert apart(path, tmp_path / "out.onnx", image(*size)) < 1e-5


@pytest.mark.parametrize("axes", [1, 3])
def test_full_rank_along_other_numbers_of_axes(tmp_path: Path, axes: int) -> None:
    weights = {"w": random(6, 4, *(3,) * axes, scale=0.2), "b": random(6)}
    nodes = [node("Conv", "x w b", "y", "conv", pads=[1] * axes + [0] * axes)]
    inputs = {"x": ("N", 4, *"DHW"[:axes])}
    path = save(tmp_path / "net.onnx", nodes, weights, inputs=inputs)
    assert written(path, tmp_path / "out.onnx", image(1, 4, *(6,) * axes)).factorized
    assert apart(path, tmp_path / "out.onnx", image(2, 4, *(7,) * axes)) < 1e-5


def test_a_channel_shuffle_is_a_gather(tmp_path: Path) -> None:
    weights = {"w": random(8, 8, 1, 1)}
    path = save(tmp_path / "net.onnx", [node("Conv", "x w", "y", "conv")], weights,
                inputs={"x": (1, 8, 5, 5)})  # fmt: skip
    plan = written(path, tmp_path / "out.onnx", image(1, 8, 5, 5), method="shuffled_grouped",
                   rank=4)  # fmt: skip
    assert plan.factorized
    kinds = [n.op_type for n in onnx.load(tmp_path / "out.onnx").graph.node]
    assert kinds == ["Conv", "Gather", "Conv"]


def test_old_files_keep_their_version_and_list_new_initializers(tmp_path: Path) -> None:
    path, out = net(tmp_path / "net.onnx", ir_version=3, opset=9), tmp_path / "out.onnx"
    model = onnx.load(path)
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
    )
    onnx.save(model, path)
    written(path, out, image(), rank=4, include=["f"])
    assert touched(path, out) == {"f", "same.weight"}
    new = onnx.load(out)
    assert (new.ir_version, new.opset_import[0].version) == (3, 9)
    assert {t.name for t in new.graph.initializer} < {v.name for v in new.graph.input}
    assert "same.weight" not in {v.name for v in new.graph.input}
    assert [v.name for v in onnx_session(out, 1).get_inputs()] == ["x"]


def test_a_file_that_differs_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(into_onnx, "place_auto_pad", lambda nodes, node: None)
    path, out = external(tmp_path / "net.onnx"), tmp_path / "out" / "net.onnx"
    with pytest.raises(ExportError, match="Not written"):
        written(path, out, image(), rank=4, include=["f"])
    assert not [*out.parent.iterdir()]
    monkeypatch.undo()
    written(path, out, image(), rank=4, include=["f"])
    with pytest.raises(OutputError, match="exists already"):
        written(path, out, image(), rank=4, include=["f"])


def test_shared_tensors_behind_an_identity(tmp_path: Path) -> None:
    """Older exporters of torch write equal tensors once, and the others as its copies."""
    weights = {"w": random(3, 3, 3, 3), "v": random(3, 3, 3, 3), "b": random(3)}
    nodes = [node("Identity", "b", "c"), node("Conv", "x w b", "a", "one"),
             node("Conv", "a v c", "y", "two")]  # fmt: skip
    path, out, x = save(tmp_path / "net.onnx", nodes, weights), tmp_path / "net2.onnx", image()
    twin = twin_of(path, x)
    plan = make_plan(twin, x, rank=1, include=["two"], allow_costlier=True)
    small = rewrite(twin, plan)
    with torch.no_grad():
        small.get_submodule("two")[-1].bias += 1
        export_back(twin, small, plan, x, out)
        np.testing.assert_allclose(run(out, x)[0], small(x).numpy(), rtol=1e-5, atol=1e-5)
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer}
    np.testing.assert_array_equal(tensors["b"], weights["b"])
