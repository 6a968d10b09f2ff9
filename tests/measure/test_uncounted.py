"""Operators that no table names: counted, or named as not counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import DeformConv2d, nms, roi_align

import factorize
from factorize.measure import count

X = torch.randn(2, 8, 9, 7, generator=torch.Generator().manual_seed(0))


class Calling(nn.Module):
    """A convolution, and a function of its output."""

    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(8, 8, 3, padding=1), function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self.conv(x))


CONV = 63 * 8 * 8 * 9  # MACs of that convolution


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("offset_groups", [1, 4])
@pytest.mark.parametrize("mask", [False, True])
def test_deformable_convolutions(groups: int, offset_groups: int, mask: bool) -> None:
    layer = DeformConv2d(8, 6, (3, 5), stride=2, padding=1, groups=groups)
    n = 15
    offset = nn.Conv2d(8, offset_groups * 2 * n, 1, stride=2)
    size = (5, 3)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.offset = layer, offset

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            at = self.offset(x)[..., : size[0], : size[1]]
            return self.layer(x, at, torch.ones(2, offset_groups * n, *size) if mask else None)

    model = Net()
    assert model(X).shape == (2, 6, *size)
    own = 15 * 6 * (8 // groups) * n
    assert count(model, X) == (
        sum(p.numel() for p in model.parameters()), 5 * 4 * 8 * offset_groups * 2 * n + own, ()
    )  # fmt: skip


@pytest.mark.parametrize(
    ("function", "macs"),
    [
        (lambda y: y.flatten() @ y.flatten(), 2 * 8 * 63),
        (lambda y: y.flatten(1) @ y[0].flatten(), 2 * 8 * 63),
        (lambda y: torch.addmv(y[:, 0, 0, 0], y.flatten(1), y[0].flatten()), 2 * 8 * 63),
        (lambda y: torch.einsum("nchw,ndhw->ncd", y, y), 2 * 63 * 64),
        (lambda y: torch.nn.functional.grid_sample(y, torch.zeros(2, 3, 3, 2)), 0),
        (lambda y: torch.nn.functional.interpolate(y, scale_factor=2, mode="bilinear"), 0),
        (lambda y: torch.nn.functional.layer_norm(y, y.shape[1:]).softmax(1).sort(1), 0),
        (lambda y: y.std() + y.norm() + torch.linalg.vector_norm(y), 0),
        (lambda y: y.cumsum(1).cumprod(2) * y, 0),
        (lambda y: roi_align(y, [torch.tensor([[0.0, 0, 4, 4]])] * 2, 3), 0),
        (lambda y: nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5), 0),
        (lambda y: y[y > 0], 0),
    ],
)
@pytest.mark.filterwarnings("ignore:Default grid_sample")
def test_what_is_counted_or_counts_as_nothing(function: Callable[..., Any], macs: int) -> None:
    cost = count(Calling(function), X)
    assert (cost.macs, cost.uncounted) == (CONV + macs // 2, ())


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda y: torch.cdist(y.flatten(1), y.flatten(1)), ["aten::_cdist_forward"]),
        (lambda y: torch.fft.rfft2(y), ["aten::_fft_r2c"]),
        (lambda y: torch.fft.ifft2(torch.fft.fft2(y.cfloat())), ["aten::_fft_c2c"]),
        (lambda y: torch.linalg.inv(y[..., :7, :7]), ["aten::linalg_inv_ex"]),
        (lambda y: torch.linalg.svd(y), ["aten::_linalg_svd"]),
        (lambda y: torch.linalg.solve(y[..., :7, :7], y[..., :7, :7]), ["aten::_linalg_solve_ex"]),
        (
            lambda y: nn.functional.bilinear(y[:, 0, 0], y[:, 1, 0], torch.ones(3, 7, 7)),
            ["aten::_trilinear"],
        ),
        (
            lambda y: torch.sparse.mm(y[0, 0].to_sparse(), y[0, 0].T),
            ["aten::_sparse_addmm"],
        ),
        (lambda y: (torch.fft.rfft(y), torch.cdist(y, y)), ["aten::_cdist_forward",
                                                           "aten::_fft_r2c"]),
    ],
)  # fmt: skip
def test_what_multiplies_and_is_not_counted_is_named(
    function: Callable[..., Any], names: list[str]
) -> None:
    cost = count(Calling(function), X)
    assert (cost.macs, list(cost.uncounted)) == (CONV, names)


@pytest.fixture
def operators() -> Iterator[Any]:
    """Operators of somebody's own: one of numbers, one of indices, one that torch takes apart."""
    library = torch.library.Library("somebodys", "FRAGMENT")
    library.define("scan(Tensor x, Tensor w) -> Tensor")
    library.define("index(Tensor i) -> Tensor")
    library.define("twice(Tensor x, Tensor w) -> Tensor")
    library.impl("scan", lambda x, w: x.clone(), "CPU")
    library.impl("index", lambda i: i.clone(), "CPU")
    library.impl("twice", lambda x, w: x @ w, "CompositeImplicitAutograd")
    yield torch.ops.somebodys
    library._destroy()


def test_operators_of_others_are_named(operators: Any) -> None:
    w = torch.ones(7, 3)
    assert count(Calling(lambda y: operators.scan(y, w)), X).uncounted == ("somebodys::scan",)
    assert count(Calling(lambda y: operators.index(y.argmax(1))), X).uncounted == ()
    twice = torch.inference_mode()(lambda y: operators.twice(y, w))  # which leaves it whole
    for function in (lambda y: operators.twice(y, w), twice):
        cost = count(Calling(function), X)
        assert (cost.macs, cost.uncounted) == (CONV + 8 * 9 * 7 * 3, ())


def test_report_says_what_is_not_counted(operators: Any) -> None:
    w = torch.ones(7, 3)
    model = Calling(lambda y: torch.fft.rfft2(operators.scan(y, w)).real)
    notes = factorize.compress(model, X, rank=2, latency=False).report.notes
    assert [note for note in notes if "not counted" in note] == [
        f"MACs of {name} are not counted: no formula is known for them"
        for name in ("aten::_fft_r2c", "somebodys::scan")
    ]


@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "swin_t", "raft_small"])
def test_nothing_of_torchvisions_nets_is_unknown(name: str) -> None:
    model = torchvision.models.get_model(name, weights=None, **(
        {"weights_backbone": None} if "rcnn" in name else {}))  # fmt: skip
    x: Any = torch.rand(1, 3, 128, 128)
    x = {"fasterrcnn_mobilenet_v3_large_320_fpn": [x[0]], "raft_small": (x, x)}.get(name, x)
    assert count(model, x).uncounted == ()
