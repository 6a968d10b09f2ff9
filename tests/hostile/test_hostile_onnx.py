"""ONNX files that are none, are damaged, reach outside of their folder, or ask for much memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_files import node, random, save
from refusing import Arguments, Case, Corpus, check_refused

CORPUS = Corpus()
WISH = ("net.onnx", "--rank", "2", "--fit", "weights", "--allow-costlier", "--include", "*")
ESCAPES = "\x1b]0;owned\x07\x1b[2J"


def small(folder: Path, change: Callable[[Any], object] = lambda model: None) -> Arguments:
    """A net of one convolution, changed."""
    path = save(folder / "net.onnx", [node("Conv", "x w", "y", "conv")], {"w": random(6, 4, 3, 3)},
                inputs={"x": (1, 4, 9, 9)})  # fmt: skip
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    return WISH


def outside(location: str, **entries: object) -> Callable[[Any], object]:
    """A weight whose data is said to be elsewhere."""

    def change(model: Any) -> None:
        (tensor,) = model.graph.initializer
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            tensor.external_data.add(key=key, value=str(value))

    return change


@CORPUS.case("net.onnx: must be an ONNX file that can be read")
def text_that_is_no_protobuf(folder: Path) -> Arguments:
    (folder / "net.onnx").write_text("<html>" + ESCAPES)
    return WISH


@CORPUS.case("net.onnx: must be an ONNX file that can be read")
def cut_in_the_middle(folder: Path) -> Arguments:
    small(folder)
    whole = (folder / "net.onnx").read_bytes()
    (folder / "net.onnx").write_bytes(whole[: len(whole) // 2])
    return WISH


@CORPUS.case("net.onnx: must have nodes and outputs")
def an_empty_file(folder: Path) -> Arguments:
    (folder / "net.onnx").write_bytes(b"")
    return WISH


@CORPUS.case("net.onnx")
def no_such_file(folder: Path) -> Arguments:
    return WISH


@CORPUS.case("net.onnx")
def a_folder_of_that_name(folder: Path) -> Arguments:
    (folder / "net.onnx").mkdir()
    return WISH


for name, location in {
    "a folder above": "../secret", "an absolute path": "/etc/hostname", "a link": "link",
    "no name": "", "a name with a zero byte": "a\0b", "a name without end": "a" * 5000,
}.items():  # fmt: skip

    def build(folder: Path, location: str = location) -> Arguments:
        (folder / "link").symlink_to("/etc/hostname")
        return small(folder, outside(location))

    CORPUS.add(f"data in {name}", build, "net.onnx: w: its data must be")


@CORPUS.case("w: its data must be bytes", "no such file")
def data_in_a_file_that_is_missing(folder: Path) -> Arguments:
    return small(folder, outside("weights.bin", length=864))


@CORPUS.case("w: its data must be bytes")
def data_behind_the_end_of_its_file(folder: Path) -> Arguments:
    (folder / "weights.bin").write_bytes(bytes(100))
    return small(folder, outside("weights.bin", offset=64, length=864))


@CORPUS.case("w: its data must be bytes")
def data_at_an_offset_that_is_no_number(folder: Path) -> Arguments:
    (folder / "weights.bin").write_bytes(bytes(1000))
    return small(folder, outside("weights.bin", offset="-5", length=864))


@CORPUS.case("w: its data must have")
def data_of_another_length_than_the_shape(folder: Path) -> Arguments:
    (folder / "weights.bin").write_bytes(bytes(1000))
    return small(folder, outside("weights.bin", length=1000))


@CORPUS.case("its data must be in a file of another name than plan.json")
def data_in_a_file_that_is_called_like_ours(folder: Path) -> Arguments:
    (folder / "plan.json").write_bytes(random(6, 4, 3, 3).tobytes())
    return small(folder, outside("plan.json"))


@CORPUS.case("w: its data must be that of its shape")
def a_weight_that_says_it_is_huge(folder: Path) -> Arguments:
    def change(model: Any) -> None:
        model.graph.initializer[0].dims[:] = [2**20, 2**20, 3, 3]

    return small(folder, change)


@CORPUS.case("w: its data must be that of its shape")
def a_weight_of_negative_size(folder: Path) -> Arguments:
    def change(model: Any) -> None:
        model.graph.initializer[0].dims[:] = [-6, 4, 3, 3]

    return small(folder, change)


@CORPUS.case("net.onnx: x must have up to 100,000,000 values")
def an_input_without_end(folder: Path) -> Arguments:
    def change(model: Any) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**40

    return small(folder, change)


@CORPUS.case("net.onnx: its weights must be dense")
def sparse_weights(folder: Path) -> Arguments:
    def change(model: Any) -> None:
        values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
        indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2**40]))

    return small(folder, change)


@CORPUS.case("inputs and outputs must be tensors of numbers, got y")
def an_output_of_texts(folder: Path) -> Arguments:
    def change(model: Any) -> None:
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING

    return small(folder, change)


@CORPUS.case("net.onnx: every node must have an output")
def a_node_without_outputs(folder: Path) -> Arguments:
    return small(folder, lambda model: model.graph.node.append(node("Identity", "", "")))


@CORPUS.case("net.onnx", "'nobody'")
def a_node_that_reads_what_is_not_there(folder: Path) -> Arguments:
    def change(model: Any) -> None:
        model.graph.node[0].input[1] = "nobody"

    return small(folder, change)


@CORPUS.case("net.onnx")
def nodes_in_a_circle(folder: Path) -> Arguments:
    def change(model: Any) -> None:
        model.graph.node[0].input[0] = "z"
        model.graph.node.append(node("Relu", "y", "z"))

    return small(folder, change)


@CORPUS.case("net.onnx")
def names_with_escape_codes(folder: Path) -> Arguments:
    def change(model: Any) -> None:
        model.graph.node.append(node("Nonsense", "y", "z", ESCAPES + "\n" + "a" * 5000))
        model.graph.output[0].name = "z"

    return small(folder, change)


@CORPUS.case("net.onnx")
def a_convolution_of_no_groups(folder: Path) -> Arguments:
    def change(model: Any) -> None:
        model.graph.node[0].attribute.add(name="group", type=2, i=0)

    return small(folder, change)


@CORPUS.case("net.onnx")
def attributes_of_a_wrong_kind(folder: Path) -> Arguments:
    def change(model: Any) -> None:
        model.graph.node[0].attribute.add(name="pads", type=3, s=b"all")

    return small(folder, change)


@CORPUS.case("gone.onnx: no such file")
def a_file_that_is_not_there(folder: Path) -> Arguments:
    return str(folder / "gone.onnx"), *small(folder)[1:]


@CORPUS.case("net.onnx")
def a_convolution_without_a_weight(folder: Path) -> Arguments:
    def change(model: Any) -> None:
        del model.graph.node[0].input[1:]

    return small(folder, change)


@CORPUS.case("net.onnx")
def an_activation_without_end(folder: Path) -> Arguments:
    def change(model: Any) -> None:
        shape = helper.make_tensor("shape", TensorProto.INT64, [2], [2**20, 2**20])
        model.graph.initializer.append(shape)
        model.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["huge"]))
        model.graph.node.append(helper.make_node("ReduceSum", ["huge"], ["one"], keepdims=0))
        model.graph.node.append(helper.make_node("Add", ["y", "one"], ["z"]))
        model.graph.output[0].name = "z"

    return small(folder, change)


@CORPUS.case("conv: its weight is not finite")
def weights_that_are_not_finite(folder: Path) -> Arguments:
    def change(model: Any) -> None:
        array = np.full((6, 4, 3, 3), np.nan, np.float32)
        model.graph.initializer[0].raw_data = array.tobytes()

    return small(folder, change)


@CORPUS.parametrize()
def test_it_is_refused_in_one_line(case: Case, tmp_path: Path) -> None:
    check_refused(case, tmp_path)


def test_the_net_itself_is_not(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="exit code 0"):
        check_refused(Case("sound", small, ("",)), tmp_path)
