"""Exported files take every size that the model takes, and say which axes are free."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from factorize.errors import ExportError
from factorize.export import export_onnx, export_program, traces
from factorize.tensor.call import onnx_feeds, onnx_session


class UNet(nn.Module):
    """Takes multiples of four: skips are joined after pooling twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.ModuleList([nn.ConvTranspose2d(4, 4, 2, 2), nn.ConvTranspose2d(8, 4, 2, 2)])

    def forward(self, x):
        one = self.one(x)
        two = self.two(F.max_pool2d(one, 2))
        deep = torch.cat([self.up[0](F.max_pool2d(two, 2)), two], 1)
        return torch.cat([self.up[1](deep), one], 1)


class Positions(nn.Module):
    """Has a table of positions, for one size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.table = nn.Conv2d(1, 2, 1), nn.Parameter(torch.randn(1, 2, 8, 6))

    def forward(self, x):
        return self.conv(x) + self.table


class Columns(nn.Module):
    """Weighs the columns: the width is fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.conv(x))


class Turned(nn.Module):
    """Adds an image to itself on its side: it must be square."""

    def forward(self, x):
        return x + x.transpose(2, 3)


class Pair(nn.Module):
    """Takes just two images."""

    def forward(self, x):
        return torch.relu(x).flatten(1).sum(1).reshape(2), F.avg_pool2d(x, 2)


class Small(nn.Module):
    """Goes another way for large images."""

    def forward(self, x):
        return F.relu(x) if x.shape[2] < 9 else x


class Strict(nn.Module):
    """Refuses another width, which does not show in its operations."""

    def forward(self, x):
        if isinstance(x.shape[3], int) and x.shape[3] != 6:
            raise ValueError("must be six wide")
        return torch.relu(x)


@pytest.mark.parametrize(
    ("model", "shape", "words", "others"),
    [
        (nn.Conv1d(1, 2, 3), (1, 1, 9), "any batch, length", [(2, 1, 30)]),
        (nn.Conv3d(1, 2, 3), (1, 1, 4, 5, 6), "any batch, depth, height, width",
         [(2, 1, 7, 4, 9)]),
        (nn.Linear(4, 2), (1, 4), "any batch", [(5, 4)]),
        (nn.Conv2d(1, 2, (1, 3)), (1, 1, 1, 9), "any batch, width; fixed height 1",
         [(2, 1, 1, 20)]),
        (UNet(), (1, 1, 8, 12), "any batch, height in steps of 4, width in steps of 4",
         [(2, 1, 32, 20)]),
        (Positions(), (1, 1, 8, 6), "any batch; fixed height 8, width 6", [(3, 1, 8, 6)]),
        (Columns(), (1, 1, 8, 6), "any batch, height; fixed width 6", [(2, 1, 11, 6)]),
        (Turned(), (1, 1, 6, 6), "any batch, height", [(2, 1, 9, 9)]),
        (Pair(), (2, 1, 8, 6), "any height, width; fixed batch 2", [(2, 1, 10, 12)]),
        (Small(), (1, 1, 8, 6), "any batch, height up to 8, width", [(2, 1, 5, 40)]),
        (Strict(), (1, 1, 8, 6), "any batch, height; fixed width 6", [(2, 1, 9, 6)]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)  # fmt: skip
def test_axes_are_free_where_the_model_allows_it(model, shape, words, others, tmp_path):
    path = tmp_path / "net.onnx"
    check = export_onnx(model, torch.randn(shape), path)
    assert check.input_sizes == words
    session = onnx_session(path, threads=1)
    for other in others:
        inputs = torch.randn(other)
        expected = model.eval()(inputs)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for got, want in zip(session.run(None, onnx_feeds(session, inputs)), expected, strict=True):
            torch.testing.assert_close(torch.as_tensor(got), want.detach())
    graph = onnx.load(path).graph
    dims = graph.input[0].type.tensor_type.shape.dim
    free = {dim.dim_param for dim in dims} - {""}
    assert free == set(check.free_axes)
    assert [dim.dim_value for dim in dims if not dim.dim_param] == [
        size for dim, size in zip(dims, shape, strict=True) if not dim.dim_param
    ]
    # Sizes of outputs are told in the same words.
    assert "s7" not in str([value.type for value in graph.output])


def test_a_program_has_the_same_free_axes(tmp_path):
    path = tmp_path / "net.pt2"
    model = UNet().eval()
    assert export_program(model, torch.randn(1, 1, 8, 12), path) == ("batch", "height", "width")
    inputs = torch.randn(2, 1, 32, 20)
    torch.testing.assert_close(torch.export.load(path).module()(inputs), model(inputs))


def test_two_inputs_of_different_sizes(tmp_path):
    class Beside(nn.Module):
        def forward(self, image, mask):
            return image.mean((2, 3)) + mask.mean((2, 3))

    inputs = torch.randn(1, 1, 8, 6), torch.randn(1, 1, 4, 6)
    check = export_onnx(Beside(), inputs, tmp_path / "net.onnx")
    assert check.free_axes == ("batch", "height", "width", "height_2", "width_2")


def test_what_onnx_cannot_express_with_free_axes_is_fixed(tmp_path, monkeypatch):
    real = torch.onnx.export

    def picky(program, *args, **kwargs):
        shapes = [node.meta["val"].shape for node in program.graph.nodes if "val" in node.meta]
        if any(not isinstance(shape[2], int) for shape in shapes if len(shape) == 4):
            raise RuntimeError("no operator for this")
        return real(program, *args, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", picky)
    check = export_onnx(nn.Conv2d(1, 2, 3), torch.randn(1, 1, 8, 6), tmp_path / "net.onnx")
    assert check.free_axes == ("batch",)


def test_a_trace_that_takes_too_long_has_fewer_free_axes(tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "_PATIENCE", 0.0)
    check = export_onnx(nn.Conv2d(1, 2, 3), torch.randn(1, 1, 8, 6), tmp_path / "net.onnx")
    assert check.free_axes == ("batch",)


def test_a_failure_is_told_for_each_file(tmp_path):
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    x = torch.ones(2, 3)
    both = traces.Traces(Branch(), x)
    for export in (export_onnx, export_program):
        with pytest.raises(ExportError, match="must be able to trace"):
            export(Branch(), x, tmp_path / "net", traces=both)


def test_free_axes_add_no_nodes_to_a_plain_net(tmp_path, monkeypatch):
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    x = torch.randn(1, 1, 16, 12)
    check = export_onnx(net, x, tmp_path / "free.onnx")
    assert check.free_axes == ("batch", "height", "width")
    monkeypatch.setattr(traces, "_PATIENCE", 0.0)
    fixed = export_onnx(net, x, tmp_path / "fixed.onnx")
    assert fixed.free_axes == ("batch",)
    assert check.nodes == fixed.nodes
