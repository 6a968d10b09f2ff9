"""Small stand-ins, on which it is cheap to see what a chain loses."""

from __future__ import annotations

import pytest
import torch
from replaying import conv
from torch import Tensor, nn

from factorize import find, methods
from factorize.search import reduced as reduced_module
from factorize.search.layer_errors import ROUGH
from factorize.search.reduced import mixing_of, reduced
from factorize.tensor.norm import Norm


def test_stand_ins_keep_a_low_rank():
    """A layer of Tucker rank (24, 24): at that rank stand-ins are reproduced too, at 16 not."""
    torch.manual_seed(0)
    core, left, right = torch.randn(24, 24, 3, 3), torch.randn(128, 24), torch.randn(128, 24)
    weight = torch.einsum("abkl,oa,ib->oikl", core, left, right).double()
    _, specs = conv(128, 128)
    (spec,), method = specs.values(), methods.get("tucker2")
    mixing = mixing_of(method.stages(spec, (24, 24), ""))
    large = reduced(spec, weight, Norm(), Norm(), [mixing])[mixing]
    small = large.smaller(mixing, ROUGH)
    assert large.weight.shape == (64, 64, 3, 3)
    assert small.weight.shape == (16, 16, 3, 3)
    for one in (large, small):
        assert one.error(spec, method, (24, 24), "", seed=0) < 1e-6
        assert one.error(spec, method, (16, 16), "", seed=0) > 0.1


@pytest.mark.parametrize("variant", ["spatial_first", "pointwise_first"])
def test_stand_in_has_as_many_groups_as_the_layer(variant: str):
    """A share of them would be one, which loses far less."""
    torch.manual_seed(0)
    weight = torch.randn(256, 256, 3, 3).double()
    _, specs = conv(256, 256)
    (spec,), method = specs.values(), methods.get("grouped")
    for rank in ((96, 2), (128, 4), (256, 8)):
        mixing = mixing_of(method.stages(spec, rank, variant))
        small = reduced(spec, weight, Norm(), Norm(), [mixing])[mixing]
        known = method.predicted_error(weight, rank, variant) or 0.0
        estimated = small.error(spec, method, rank, variant, seed=0)
        assert estimated == pytest.approx(known**2, rel=0.1), rank


def test_what_costs_most_is_computed_once_for_all_kinds_of_chains(monkeypatch: pytest.MonkeyPatch):
    made: list[int] = []

    class Counted(reduced_module._White):
        def __init__(self, covariance: Tensor | None, weight: Tensor) -> None:
            made.append(len(weight))
            super().__init__(covariance, weight)

    monkeypatch.setattr(reduced_module, "_White", Counted)
    spec = find(nn.Conv2d(72, 72, 3), torch.zeros(1, 72, 4, 4))[0].spec
    weight = torch.randn(72, 72, 3, 3, dtype=torch.float64)
    mixings = [(one, other) for one in (True, False) for other in (True, False)]
    found = reduced(spec, weight, Norm(), Norm(), mixings)
    assert list(found) == mixings
    assert made == [72, 36, 36, 36, 36]
    assert len({float(one.weight.norm()) for one in found.values()}) == 4


def test_a_side_that_is_not_mixed_keeps_single_channels():
    torch.manual_seed(0)
    weight = torch.randn(40, 48, 3, 3).double()
    spec = find(nn.Conv2d(48, 40, 3), torch.zeros(1, 48, 4, 4))[0].spec
    (plain,) = reduced(spec, weight, Norm(), Norm(), [(False, False)], ROUGH).values()
    assert plain.weight.shape == (13, 16, 3, 3)
    assert (plain.spec.out_channels, plain.spec.in_channels) == (13, 16)
    rows = {tuple(kernel.flatten().tolist()) for row in weight for kernel in row}
    assert {tuple(kernel.flatten().tolist()) for row in plain.weight for kernel in row} <= rows


def test_a_wide_layer_has_the_directions_of_a_square_one():
    """From its output's side, whose matrices are small: the same stand-in but for signs."""
    torch.manual_seed(0)
    spec = find(nn.Conv2d(120, 32, 1), torch.zeros(1, 120, 4, 4))[0].spec
    flat, inputs = torch.randn(32, 120).double(), torch.randn(400, 120).double()
    norm, weight = Norm((inputs.T @ inputs / 400,)), flat[:, :, None, None]
    wide = reduced(spec, weight, norm, norm, [(True, True)], 32)[True, True]
    assert wide.spec.in_channels == 32
    assert wide.norm.energy(wide.weight) == pytest.approx(norm.energy(weight))
    shown = torch.linalg.svdvals(
        wide.weight.flatten(1) @ torch.linalg.cholesky(wide.norm.second[0])
    )
    known = torch.linalg.svdvals(flat @ torch.linalg.cholesky(norm.second[0]))
    assert torch.allclose(shown, known)


def test_a_layer_whose_errors_are_exact_needs_no_stand_in(monkeypatch: pytest.MonkeyPatch):
    """A wide linear layer that is fitted to its weight: an SVD tells its errors."""
    from factorize.search import layer_errors

    asked: list[list[object]] = []
    monkeypatch.setattr(layer_errors, "reduced", lambda *a: asked.append(list(a[4])) or {})
    module = nn.Conv2d(80, 72, 1)
    spec = find(module, torch.zeros(1, 80, 4, 4))[0].spec
    offered = [(("channel_svd", methods.get("channel_svd").variants[0], ()), [(8,), (16,)])]
    layer_errors.LayerErrors(spec, module, None, offered)
    assert asked == [[]]
