"""Names, opset and number format of an ONNX file, and what it does not tell."""

from __future__ import annotations

import exporting
import numpy as np
import onnx
import pytest
import torch
from exporting import CHAINS
from torch import nn

from factorize.errors import ExportError
from factorize.export import OnnxConfig, export_onnx, export_program, layer_nodes
from factorize.tensor.call import onnx_feeds, onnx_session


class Heads(nn.Module):
    """Its keys are names of an argument and of inner values too, and one value is put out twice."""

    def forward(self, image, relu):
        x = torch.relu(image) + torch.sigmoid(relu)
        return {"image": x, "sigmoid": x, "parts": [x.sum((1, 2)), image]}


def names(path) -> tuple[list[str], list[str]]:
    graph = onnx.load(path).graph
    return [v.name for v in graph.input], [v.name for v in graph.output]


def test_names_are_those_of_arguments_and_keys(tmp_path):
    inputs = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    path = tmp_path / "net.onnx"
    export_onnx(Heads(), inputs, path)
    assert names(path) == (
        ["image", "relu"], ["image_output", "sigmoid", "parts_0", "parts_1"],
    )  # fmt: skip
    config = OnnxConfig(input_names=("relu", "b"), output_names=("w", "x", "y", "z"))
    export_onnx(Heads(), inputs, path, config=config, force=True)
    assert names(path) == (["relu", "b"], ["w", "x", "y", "z"])
    export_onnx(nn.Conv2d(3, 2, 1), torch.randn(1, 3, 4, 4), path, force=True)
    assert names(path) == (["input"], ["output"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (OnnxConfig(input_names=("a", "b")), "--input-names: must be one for each input, 1 in all"),
        (OnnxConfig(output_names=("a", "b")), "--output-names: must be one for each output, 1 in"),
        (OnnxConfig(input_names=("a",), output_names=("a",)), "all different, got a twice"),
        (OnnxConfig(opset=99), "--opset must be .* got 99; .* works|expressible in ONNX"),
    ],
)
def test_options_that_do_not_fit_are_refused(config, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export_onnx(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "net.onnx", config=config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("opset", [18, 21])
def test_the_opset_is_the_one_asked_for(opset, tmp_path):
    path = tmp_path / "net.onnx"
    check = export_onnx(
        exporting.net(), exporting.image(), path, chains=CHAINS, config=OnnxConfig(opset=opset)
    )
    assert check.opset == opset
    assert [one.version for one in onnx.load(path).opset_import if not one.domain] == [opset]


def test_files_do_not_tell_where_they_were_made(tmp_path):
    net, x = exporting.net(), exporting.image()
    path = tmp_path / "net.onnx"
    check = export_onnx(net, x, path)
    export_program(net, x, tmp_path / "net.pt2")
    for file in tmp_path.iterdir():
        content = file.read_bytes()
        for word in (b"/", b".py"):
            words = [b"" if word == b"/" else word, exporting.__file__.encode(), b"in forward"]
            assert not any(one in content for one in words if one), file
    model = onnx.load(path)
    assert b"exporting" not in path.read_bytes()
    assert not model.graph.metadata_props
    assert not any(node.metadata_props for node in model.graph.node)
    weights = sum(v.nbytes for v in net.state_dict().values())
    assert check.bytes < weights + 400 * len(model.graph.node)


def test_layers_are_found_in_a_finished_file(tmp_path):
    net, path = exporting.net(), tmp_path / "net.onnx"
    export_onnx(net, exporting.image(), path, chains=CHAINS)
    assert layer_nodes(onnx.load(path).graph, net) == {
        "stem": ["stem/Conv"],
        "conv1.0": ["conv1.0/Conv"],
        "conv1.1": ["conv1.1/Conv"],
        "conv2.0": ["conv2.0/Conv", "conv2.0/Conv_1"],
        "conv2.1": ["conv2.1/Conv", "conv2.1/Conv_1"],
        "fc": ["fc/Gemm"],
    }


def test_half_holds_float16_between_float32(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    x = torch.randn(1, 3, 9, 9)
    sizes = []
    for half in (False, True):
        path = tmp_path / f"{half}.onnx"
        check = export_onnx(net, x, path, config=OnnxConfig(half=half))
        sizes.append(check.bytes)
    assert sizes[1] < 0.55 * sizes[0]
    assert check.tolerance == 2e-2
    assert 1e-6 < check.max_rel < 2e-2
    assert check.free_axes == ("batch", "height", "width")
    graph = onnx.load(path).graph
    assert {one.data_type for one in graph.initializer} == {onnx.TensorProto.FLOAT16}
    session = onnx_session(path, threads=1)
    assert session.run(None, onnx_feeds(session, x))[0].dtype == np.float32
    with pytest.raises(ExportError, match="must be float32, got torch.float64"):
        export_onnx(net.double(), x.double(), path, config=OnnxConfig(half=True), force=True)
