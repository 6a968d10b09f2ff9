"""The twin of an ONNX file computes what ONNX Runtime does, and its layers are torch's own."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_files import apart, external, image, net, node, random, run, save, twin_of, written
from torch import nn

from factorize.errors import ModelLoadError
from factorize.graph import find
from factorize.models.load_model import load_model
from factorize.onnx_graph import check_batch, operators


def reasons(path: Path, x: torch.Tensor) -> dict[str, str | None]:
    return {site.spec.name: site.blocked for site in find(twin_of(path, x), x)}


def assert_twin(path: Path, x: torch.Tensor) -> None:
    with torch.no_grad():
        got = twin_of(path, x)(x)
    got = got.values() if isinstance(got, dict) else [got]
    for ours, theirs in zip(got, run(path, x), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 3, 9, 10), (2, 3, 12, 11)])
def test_layers_are_modules_named_by_their_nodes(tmp_path: Path, size: tuple[int, ...]) -> None:
    path = net(tmp_path / "net.onnx")
    twin = twin_of(path, image())
    x = image(*size)
    with torch.no_grad():
        np.testing.assert_allclose(twin(x).numpy(), run(path, x)[0], atol=1e-5)
    sites = find(twin, x)
    assert [site.spec.name for site in sites] == ["first/Conv", "block.even", "f", "up", "fc",
                                                  "last"]  # fmt: skip
    assert all(site.blocked is None for site in sites)
    assert [type(twin.get_submodule(site.spec.name)) for site in sites] == [
        nn.Conv2d, nn.Conv2d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Linear,
    ]  # fmt: skip
    assert isinstance(twin.get_submodule("norm"), nn.modules.batchnorm._BatchNorm)


def test_names_that_cannot_be_a_modules_are_changed(tmp_path: Path) -> None:
    weights = {"w": random(3, 3, 1, 1), "v": random(3, 3, 1, 1), "u": random(3, 3, 1, 1)}
    nodes = [
        node("Conv", "x w", "a", "conv"),
        node("Conv", "a v", "b", "conv.inner"),  # leads through a layer
        node("Conv", "b u", "training", "forward"),  # both are names of what a module has
        node("Relu", "training", "y"),
    ]
    path = save(tmp_path / "net.onnx", nodes, weights)
    assert list(reasons(path, image())) == ["conv", "b", "forward_1"]


def constant_weights(path: Path) -> Path:
    """As PaddlePaddle writes them."""
    model = onnx.load(net(path))
    tensors = [*model.graph.initializer]
    del model.graph.initializer[:]
    for index, tensor in enumerate(tensors):
        constant = helper.make_node("Constant", [], [tensor.name], value=tensor)
        model.graph.node.insert(index, constant)
    onnx.save(model, path)
    return path


def initializers_in_inputs(path: Path) -> Path:
    model = onnx.load(net(path, ir_version=3))
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
    )
    onnx.save(model, path)
    return path


FORMS = [net, constant_weights, initializers_in_inputs, external]


@pytest.mark.parametrize("form", FORMS)
def test_wherever_the_weights_are(tmp_path: Path, form) -> None:
    path = form(tmp_path / "net.onnx")
    assert_twin(path, image())
    plan = written(path, tmp_path / "out" / "net.onnx", image())
    assert len(plan.factorized) == 6
    for size in ((1, 3, 9, 10), (3, 3, 14, 9)):
        assert apart(path, tmp_path / "out" / "net.onnx", image(*size)) < 1e-5


def test_a_fixed_batch_is_freed_in_the_twin_alone(tmp_path: Path) -> None:
    weights = {
        "w": random(8, 3, 3, 3),
        "shape": np.array([1, 8, -1]),
        "v": random(56, 4, scale=0.1),
    }
    nodes = [node("Conv", "x w", "a", "conv"), node("Reshape", "a shape", "b"),
             node("MatMul", "b v", "y", "last")]  # fmt: skip
    path = save(tmp_path / "net.onnx", nodes, weights, inputs={"x": (1, 3, 9, 10)})
    twin, x = twin_of(path, image()), image(3, 3, 9, 10)
    with torch.no_grad():
        together = twin(x)
    alone = [run(path, one[None])[0] for one in x]
    np.testing.assert_allclose(together.numpy(), np.concatenate(alone), atol=1e-5)
    written(path, tmp_path / "out" / "net.onnx", image())
    assert apart(path, tmp_path / "out" / "net.onnx", image()) < 1e-5


def test_a_larger_fixed_batch(tmp_path: Path) -> None:
    weights = {"w": random(8, 3, 3, 3), "shape": np.array([4, -1]), "v": random(448, 4, scale=0.1)}
    nodes = [node("Conv", "x w", "a", "conv"), node("Reshape", "a shape", "b"),
             node("MatMul", "b v", "y", "last")]  # fmt: skip
    path = save(tmp_path / "net.onnx", nodes, weights, inputs={"x": (4, 3, 9, 10)})
    x = image(4, 3, 9, 10)
    with torch.no_grad():
        alone = [twin_of(path, image())(one[None]) for one in x]
    np.testing.assert_allclose(torch.cat(alone).numpy(), run(path, x)[0], atol=1e-4)
    written(path, tmp_path / "out" / "net.onnx", image())
    assert apart(path, tmp_path / "out" / "net.onnx", x) < 1e-5
    weights["shape"] = np.array([-1, 448])
    nodes.insert(1, node("Add", "a across", "c"))  # of the samples, each has its own
    nodes[2].input[0], weights["across"] = "c", random(4, 1, 1, 1)
    save(path, nodes, weights, inputs={"x": (4, 3, 9, 10)})
    with pytest.raises(ModelLoadError, match="its batch must be 1 or free, got 4"):
        twin_of(path, image())


def test_real_images_are_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large values, in which a random example has none."""
    monkeypatch.setitem(operators._OURS, "Gather", lambda given, x, i: x.clamp(max=50)[:, :2])
    nodes = [node("Conv", "x w", "a", "conv"), node("Gather", "a i", "y", "pick", axis=1)]
    weights = {"w": random(4, 3, 1, 1), "i": np.array([0, 1])}
    twin = twin_of(save(tmp_path / "net.onnx", nodes, weights), image())
    check_batch(twin, image(6, 3, 9, 10))
    with pytest.raises(ModelLoadError, match=r"for image 1 .* differs: pick \(Gather of opset 13"):
        check_batch(twin, torch.stack([image()[0], 200 * image()[0]]))


def test_where_samples_mix_they_go_through_one_by_one(tmp_path: Path) -> None:
    weights = {"w": random(8, 3, 3, 3), "shape": np.array([8, -1]), "v": random(56, 4, scale=0.1)}
    nodes = [node("Conv", "x w", "a", "conv"), node("Reshape", "a shape", "b"),
             node("MatMul", "b v", "c", "last"), node("Unsqueeze", "c zero", "y")]  # fmt: skip
    weights["zero"] = np.array([0])
    path = save(tmp_path / "net.onnx", nodes, weights, inputs={"x": (1, 3, 9, 10)})
    loaded = load_model(path)
    assert loaded.check is not None
    assert "one by one" in loaded.check(image())[0]
    x = image(3, 3, 9, 10)
    with torch.no_grad():
        together = loaded.model(x)
    alone = [run(path, one[None])[0] for one in x]
    np.testing.assert_allclose(together.numpy(), np.concatenate(alone), atol=1e-5)


def test_outputs_without_a_batch_axis(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "a", "conv"), node("ReduceMean", "a", "y", keepdims=0)]
    path = save(tmp_path / "net.onnx", nodes, {"w": random(8, 3, 3, 3)})
    x = image(2, 3, 9, 10)
    with torch.no_grad():
        together = twin_of(path, image())(x)
    alone = [run(path, one[None])[0] for one in x]
    np.testing.assert_allclose(together.numpy(), np.array(alone), rtol=1e-5)


def test_images_with_the_colours_last_are_turned(tmp_path: Path) -> None:
    weights = {"w": random(8, 3, 3, 3)}
    nodes = [node("Transpose", "x", "a", perm=[0, 3, 1, 2]), node("Conv", "a w", "y", "conv")]
    path = save(tmp_path / "net.onnx", nodes, weights, inputs={"x": ("N", 9, 10, 3)})
    loaded = load_model(path)
    assert loaded.input_shape == (3, 9, 10)
    assert "(N, H, W, C)" in loaded.notes[0]
    x = image()
    with torch.no_grad():
        np.testing.assert_allclose(
            twin_of(path, x)(x).numpy(), run(path, x.movedim(1, -1))[0], atol=1e-5
        )
    written(path, tmp_path / "out" / "net.onnx", x)
    assert apart(path, tmp_path / "out" / "net.onnx", x.movedim(1, -1)) < 1e-5


def test_half_precision_is_fitted_in_float32_and_written_as_it_was(tmp_path: Path) -> None:
    weights = {"w": random(8, 3, 3, 3).astype(np.float16), "b": random(8).astype(np.float16)}
    nodes = [node("Conv", "x w b", "a", "conv"), node("Relu", "a", "y")]
    path = save(tmp_path / "net.onnx", nodes, weights, kind=TensorProto.FLOAT16)
    x = image()
    assert {p.dtype for p in twin_of(path, x).parameters()} == {torch.float32}
    written(path, tmp_path / "out" / "net.onnx", x)
    tensors = onnx.load(tmp_path / "out" / "net.onnx").graph.initializer
    assert {tensor.data_type for tensor in tensors} == {TensorProto.FLOAT16}
    assert apart(path, tmp_path / "out" / "net.onnx", x.half()) < 5e-3


def test_several_inputs_and_outputs_by_name(tmp_path: Path) -> None:
    weights = {"w": random(8, 3, 3, 3)}
    nodes = [
        node("Conv", "image w", "a", "conv"),
        node("Mul", "a mask", "y"),
        node("Relu", "a", "z"),
    ]
    inputs = {"image": (1, 3, 9, 10), "mask": (1, 1, 7, 8)}
    path = save(tmp_path / "net.onnx", nodes, weights, inputs=inputs, outputs=("y", "z"))
    loaded = load_model(path, shapes={"mask": (1, 8, 7, 8)})
    assert {name: tuple(v.shape) for name, v in loaded.example.items()} == {
        "image": (1, 3, 9, 10), "mask": (1, 8, 7, 8),
    }  # fmt: skip
    x = load_model(path).example
    with torch.no_grad():
        made = twin_of(path, x)(**x)
    assert list(made) == ["y", "z"]
    for ours, theirs in zip(made.values(), run(path, x), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)
    written(path, tmp_path / "out" / "net.onnx", x)
    assert apart(path, tmp_path / "out" / "net.onnx", x) < 1e-5


def test_weights_of_several_nodes_stay(tmp_path: Path) -> None:
    weights = {"w": random(3, 3, 3, 3), "v": random(3, 3, 3, 3)}
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", "x w", "a", "one", **pads),
        node("Identity", "w", "again"),
        node("Conv", "a again", "b", "two", **pads),
        node("Conv", "b v", "y", "own"),
    ]
    found = reasons(save(tmp_path / "net.onnx", nodes, weights), image())
    assert found == {
        "one": "its weight is used 2 times in the file",
        "two": "its weight is used 2 times in the file", "own": None,
    }  # fmt: skip


def test_weights_that_are_computed_or_quantized_stay(tmp_path: Path) -> None:
    weights = {"w": random(3, 3, 3, 3), "v": random(3, 3, 3, 3), "two": np.array(2, np.float32),
               "q": np.ones((3, 3, 1, 1), np.int8), "s": np.array(0.5, np.float32)}  # fmt: skip
    nodes = [
        node("Mul", "w two", "twice"), node("Conv", "x twice", "a", "computed"),
        node("DequantizeLinear", "q s", "dq"), node("Conv", "a dq", "b", "quantized"),
        node("Conv", "b v", "y", "own"),
    ]  # fmt: skip
    path = save(tmp_path / "net.onnx", nodes, weights)
    assert_twin(path, image())
    assert load_model(path).notes == (
        "computed left alone: its weight is computed",
        "quantized left alone: its weight is quantized",
    )
    assert reasons(path, image()) == {"own": None}


def test_layers_in_functions_and_graphs_inside_stay(tmp_path: Path) -> None:
    inner = [node("Conv", "z v", "t", "hidden"), node("Relu", "t", "u")]
    function = helper.make_function(
        "mine", "Block", ["z", "v"], ["u"], inner, [helper.make_opsetid("", 13)]
    )
    body = helper.make_graph(
        [node("Conv", "c k", "inside", "deep")], "then", [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(random(4, 3, 1, 1), "k")],
    )  # fmt: skip
    other = copy.deepcopy(body)
    other.name, other.node[0].name, other.node[0].output[0] = "else", "deeper", "outside"
    other.output[0].name = "outside"
    block = helper.make_node("Block", ["x", "v"], ["c"], "block", domain="mine")
    nodes = [block, node("If", "yes", "e", then_branch=body, else_branch=other),
             node("Conv", "e w", "y", "own")]  # fmt: skip
    weights = {"v": random(3, 3, 3, 3), "w": random(4, 4, 3, 3), "yes": np.array(True)}
    path = save(tmp_path / "net.onnx", nodes, weights, functions=[function])
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    onnx.save(model, path)
    assert_twin(path, image())
    found = reasons(path, image())
    assert found.pop("own") is None
    assert set(found.values()) == {
        "it is in a function of the file", "it is in a graph inside of a node",
    }  # fmt: skip


def test_what_the_converter_cannot_do_is_refused_by_name(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "a", "conv"), helper.make_node(
        "QAttention", ["a"], ["y"], "attend", domain="com.microsoft")]  # fmt: skip
    path = save(tmp_path / "net.onnx", nodes, {"w": random(3, 3, 1, 1)})
    with pytest.raises(ModelLoadError, match=r"node attend, QAttention of opset 13, cannot be"):
        load_model(path)


def test_a_twin_that_differs_is_refused_by_the_first_node_that_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {"w": random(3, 3, 1, 1), "shape": np.array([0, 3, -1])}
    nodes = [node("Conv", "x w", "a", "conv"), node("Slice", "a s e", "b", "cut"),
             node("Relu", "b", "c"), node("Reshape", "c shape", "y")]  # fmt: skip
    weights |= {"s": np.array([0, 0, 1, 1]), "e": np.array([9, 9, 7, 7])}
    path = save(tmp_path / "net.onnx", nodes, weights)
    monkeypatch.setitem(operators._OURS, "Slice", lambda given, x, *_: 1 + x[:, :, 1:7, 1:7])
    with pytest.raises(ModelLoadError, match=r"got .* in y; the first .*: cut \(Slice of opset 13"):
        twin_of(path, image())
