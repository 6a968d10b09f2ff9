"""Models called with more than tensors, and models that give objects of their own classes."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import onnx
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from factorize.errors import ExportError
from factorize.export import export_onnx, export_program
from factorize.export.plain_call import plain, plain_call


@dataclass
class ModelOutput(OrderedDict):
    """As transformers has it: a dict of what is there, registered where the class is known."""

    logits: Any = None
    loss: Any = None
    hidden: Any = None

    def __post_init__(self) -> None:
        self.update({k: v for k, v in vars(self).items() if v is not None})


pytree.register_pytree_node(
    ModelOutput,
    lambda output: (list(output.values()), list(output)),
    lambda values, keys: ModelOutput(**dict(zip(keys, values, strict=True))),
    serialized_type_name="test_plain_call.ModelOutput",
)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.register_buffer("offset", torch.ones(1))

    def forward(self, pixel_values, labels=None, scale=1.0, all_layers=False):
        x = self.conv(pixel_values)
        logits = scale * x.mean((2, 3)) + self.offset
        return ModelOutput(logits=logits, hidden=(x, x + 1) if all_layers else None)


def test_an_output_class_is_a_dict_where_it_is_loaded(tmp_path):
    torch.manual_seed(0)
    model, x = Classifier(), torch.randn(1, 1, 8, 8)
    given = {"pixel_values": x, "labels": None, "scale": 2.0, "all_layers": True}
    export_program(model, given, tmp_path / "net.pt2")
    export_onnx(model, given, tmp_path / "net.onnx")
    got = torch.export.load(tmp_path / "net.pt2").module()(pixel_values=x)
    assert type(got) is dict
    assert list(got) == ["logits", "hidden"]
    torch.testing.assert_close(got["logits"], model.eval()(x, scale=2.0).logits)
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert [v.name for v in graph.input] == ["pixel_values"]
    assert [v.name for v in graph.output] == ["logits", "hidden_0", "hidden_1"]


def test_scalars_among_positional_arguments_are_frozen(tmp_path):
    torch.manual_seed(0)
    model, x = Classifier(), torch.randn(1, 1, 8, 8)
    export_program(model, (x, None, 3), tmp_path / "net.pt2")
    got = torch.export.load(tmp_path / "net.pt2").module()(x)
    torch.testing.assert_close(got["logits"], model.eval()(x, scale=3).logits)


def test_the_model_stays_as_it_is():
    model = Classifier()
    before = dict(vars(model))
    called = plain_call(model, torch.randn(1, 1, 8, 8))
    called.model.eval()
    assert vars(model) == before | {"training": True}
    assert dict(called.model.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert called.model.conv is model.conv


def test_a_call_without_a_tensor_is_refused():
    with pytest.raises(ExportError, match="one a tensor, got int"):
        plain_call(Classifier(), (1,))


Point = namedtuple("Point", "x y")


@dataclass
class Boxes:
    boxes: Any
    scores: Any = None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        ([1, None, (2,)], [1, (2,)]),
        (Point(1, None), {"x": 1}),
        (Boxes(1), {"boxes": 1}),
        (OrderedDict(a=[Boxes(1, 2)]), {"a": [{"boxes": 1, "scores": 2}]}),
        (ModelOutput(logits=1), {"logits": 1}),
    ],
)
def test_outputs_are_plain(value, expected):
    got = plain(value)
    assert got == expected
    assert type(got) is type(expected)


@torch.library.custom_op("factorize_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@twice.register_fake
def _(x):
    return torch.empty_like(x)


def test_a_file_that_only_runs_in_this_process_is_refused(tmp_path):
    class Twice(nn.Module):
        def forward(self, x):
            return twice(x)

    with pytest.raises(
        ExportError, match="in a process that has torch alone, got .*factorize_tests.twice"
    ):
        export_program(Twice(), torch.ones(2, 3), tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())
