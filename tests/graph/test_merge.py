"""Parallel convolutions as one grouped one: ``C(cat(x, y)) = cat(Cx(x), Cy(y))``."""

import copy

import pytest
import torch
from convolutions import layers
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import factorize
from factorize.errors import UnsupportedLayerError


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@given(layers("channel_svd"), st.integers(2, 4), st.data())
def test_merged_convolutions_compute_the_same(
    case: tuple[nn.Module, torch.Tensor], count: int, data: st.DataObject
) -> None:
    layer, x = case
    assume(not isinstance(layer, nn.Linear) and not parametrize.is_parametrized(layer))
    layer = layer.double()
    convs = [copy.deepcopy(layer) for _ in range(count)]
    for conv in convs:
        for parameter in conv.parameters():
            nn.init.normal_(parameter)
    inputs = [torch.randn_like(x) for _ in convs]
    merged = factorize.merge_parallel(convs)
    assert type(merged) is type(layer)
    assert sum(p.numel() for p in merged.parameters()) == sum(
        p.numel() for conv in convs for p in conv.parameters()
    )
    with torch.no_grad():
        expected = torch.cat([conv(one) for conv, one in zip(convs, inputs, strict=True)], 1)
        actual = merged(torch.cat(inputs, 1))
    assert torch.allclose(actual, expected, atol=1e-12)


def test_parametrised_weights_are_folded_and_flags_are_the_firsts() -> None:
    convs = [parametrizations.weight_norm(nn.Conv2d(4, 6, 3)).eval().half().float()
             for _ in range(2)]  # fmt: skip
    x = torch.randn(2, 8, 5, 5)
    merged = factorize.merge_parallel(convs)
    assert type(merged) is nn.Conv2d
    assert not merged.training
    with torch.no_grad():
        expected = torch.cat([convs[0](x[:, :4]), convs[1](x[:, 4:])], 1)
        assert torch.allclose(merged(x), expected, atol=1e-5)
    frozen = [nn.Conv2d(4, 6, 3).requires_grad_(False) for _ in range(2)]
    assert not any(p.requires_grad for p in factorize.merge_parallel(frozen).parameters())


def test_weights_that_hooks_compute_are_those_of_the_next_call() -> None:
    with pytest.warns(FutureWarning):
        convs = [nn.utils.weight_norm(nn.Conv2d(4, 6, 3)) for _ in range(2)]
    for conv in convs:
        conv.weight_g.data *= 3  # as load_state_dict would
    x = torch.randn(2, 8, 5, 5)
    merged = factorize.merge_parallel(convs)
    with torch.no_grad():
        expected = torch.cat([convs[0](x[:, :4]), convs[1](x[:, 4:])], 1)
        assert torch.allclose(merged(x), expected, atol=1e-5)


def test_merged_convolution_is_on_the_device_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    # The meta device, which is refused, stands for any but the CPU.
    monkeypatch.setattr("factorize.graph.merge.forbidden", lambda _: None)
    merged = factorize.merge_parallel([nn.Conv2d(4, 4, 3, device="meta") for _ in range(2)])
    assert {parameter.device.type for parameter in merged.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("convs", "told"),
    [
        ([nn.Conv2d(4, 4, 3)], "two convolutions or more, got Conv2d"),
        ([nn.Linear(4, 4), nn.Linear(4, 4)], "got Linear, Linear"),
        (
            [nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, stride=2)],
            "its stride is",
        ),
        ([nn.Conv2d(4, 4, 3), nn.Conv2d(4, 8, 3)], "out_channels is 8"),
        ([nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, bias=False)], "bias is False"),
        ([nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3).double()], "one dtype and device"),
        ([nn.Conv2d(4, 4, 3), nn.LazyConv2d(4, 3)], "convolution 1: lazy module"),
    ],
)
def test_what_cannot_be_merged_is_refused(convs: list[nn.Module], told: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=told):
        factorize.merge_parallel(convs)


class Parallel(nn.Module):
    """Three convolutions of parts of the input, joined; another joined with something else."""

    def __init__(self, third: int = 4) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, third, 3)])
        self.last = nn.Conv2d(8 + third, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pieces = zip(self.parts, x.chunk(3, 1), strict=True)
        y = torch.cat([part(piece) for part, piece in pieces], dim=-3)
        return torch.cat((self.last(y), x[:, :, 1:-1, 1:-1]), 1)


def test_the_walker_tells_of_parallel_convolutions() -> None:
    sites = {site.spec.name: site for site in factorize.find(Parallel(), torch.randn(2, 12, 6, 6))}
    assert sites["parts.0"].parallel == ("parts.1", "parts.2")
    assert sites["parts.2"].parallel == ("parts.0", "parts.1")
    assert sites["last"].parallel == ()
    unequal = factorize.find(Parallel(third=8), torch.randn(2, 12, 6, 6))
    assert not any(site.parallel for site in unequal)
