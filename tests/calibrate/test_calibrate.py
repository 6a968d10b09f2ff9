"""Calibration: which patches, and their moments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import convolutions
import pytest
import torch
from calibrating import generator, whole
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from factorize.calibrate import MomentSums, outputs_at, sample
from factorize.calibrate import moment_sums as moments_module
from factorize.errors import DataError
from factorize.graph import effective_weight
from factorize.graph.spec_of import spec_of
from factorize.tensor.moments import Moments

# torch tells that an even kernel with padding="same" needs a copy.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

MODES = ("zeros", "reflect", "replicate", "circular")


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Conv2d, Tensor]:
    """A convolution with any attributes and whole weights, and an input it takes."""
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    same = draw(st.booleans())
    conv = nn.Conv2d(
        in_channels=draw(st.integers(1, 3)),
        out_channels=2,
        kernel_size=kernel,
        stride=1 if same else (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        padding="same" if same else (draw(st.integers(0, 3)), draw(st.integers(0, 2))),
        dilation=dilation,
        padding_mode=draw(st.sampled_from(MODES)),
        bias=False,
    ).double()
    conv.weight.data = whole(*conv.weight.shape, seed=1)
    # Reflection needs more pixels than padding, and the window must fit.
    size = (draw(st.integers(7, 10)), draw(st.integers(7, 10)))
    return conv, whole(draw(st.integers(1, 3)), conv.in_channels, *size)


@given(layers())
def test_all_patches_times_the_weight_are_the_layers_output(case: tuple[nn.Conv2d, Tensor]):
    conv, x = case
    y = conv(x)
    patches, index = sample(spec_of(conv, "a"), x, None, generator())
    assert len(index) == len(x) * y[0, 0].numel()
    taken = outputs_at(spec_of(conv, "a"), y, index)
    assert torch.equal(patches @ conv.weight.flatten(1).T, taken)
    assert torch.equal(taken, y.permute(0, 2, 3, 1).reshape(-1, 2))


@given(layers(), st.integers(1, 30), st.integers(0, 5))
def test_sampled_patches_are_at_their_index(case: tuple[nn.Conv2d, Tensor], count: int, seed: int):
    conv, x = case
    y = conv(x)
    area = y[0, 0].numel()
    patches, index = sample(spec_of(conv, "a"), x, count, generator(seed))
    assert torch.equal(patches @ conv.weight.flatten(1).T, outputs_at(spec_of(conv, "a"), y, index))
    assert len(index.unique()) == len(index) == len(x) * min(count, area)
    assert torch.bincount(index // area).tolist() == [min(count, area)] * len(x)


def test_every_position_is_drawn_as_often():
    conv = nn.Conv2d(1, 1, 3, padding=1)
    _, index = sample(spec_of(conv, "a"), torch.zeros(6000, 1, 4, 5), 5, generator())
    times = torch.bincount(index % 20, minlength=20)
    assert times.sum() == 30_000
    assert (times - 1500).abs().max() < 5 * (6000 * 0.25 * 0.75) ** 0.5  # five deviations


def test_any_memory_format_and_part_of_a_tensor():
    conv = nn.Conv2d(3, 2, 3, stride=2).double()
    x = whole(4, 6, 9, 9)
    wanted, _ = sample(spec_of(conv, "a"), x[1:3, 2:5].clone(), None, generator())
    for given_x in (x[1:3, 2:5], x.to(memory_format=torch.channels_last)[1:3, 2:5]):
        assert torch.equal(sample(spec_of(conv, "a"), given_x, None, generator())[0], wanted)


def test_groups_have_the_patches_of_all_channels():
    conv = nn.Conv2d(4, 4, 3, groups=4)
    assert sample(spec_of(conv, "a"), whole(1, 4, 5, 5), 2, generator())[0].shape == (2, 36)


@given(convolutions.layers("channel_svd"), st.integers(1, 30))
def test_patches_of_every_kind_times_the_weight_are_the_output(
    case: tuple[nn.Module, Tensor], count: int
):
    layer, x = case[0].double(), case[1]
    spec = spec_of(layer, "a")
    assume(spec.groups == 1)
    weight, bias = effective_weight(layer).flatten(1), 0 if layer.bias is None else layer.bias
    patches, index = sample(spec, x, count, generator())
    expected = outputs_at(spec, layer(x), index)
    assert torch.allclose(patches @ weight.T + bias, expected, atol=1e-12)
    assert len(index.unique()) == len(index) > 0


def brute_force(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """All patches (n, D) by explicit loops over a padded input that is looked up pixel by pixel."""
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
    if conv.padding == "same":
        top, left = dh * (kh - 1) // 2, dw * (kw - 1) // 2
    else:
        top, left = conv.padding
    height, width = x.shape[2:]

    def source(i: int, n: int) -> int | None:
        if 0 <= i < n:
            return i
        if conv.padding_mode == "zeros":
            return None
        if conv.padding_mode == "circular":
            return i % n
        if conv.padding_mode == "replicate":
            return min(max(i, 0), n - 1)
        return -i if i < 0 else 2 * (n - 1) - i

    rows, columns = conv(x).shape[2:]
    patches = []
    for image in x:
        for oy in range(rows):
            for ox in range(columns):
                patch = torch.zeros(len(image), kh, kw, dtype=x.dtype)
                for a in range(kh):
                    for b in range(kw):
                        y = source(oy * sh - top + a * dh, height)
                        z = source(ox * sw - left + b * dw, width)
                        if y is not None and z is not None:
                            patch[:, a, b] = image[:, y, z]
                patches.append(patch.flatten())
    return torch.stack(patches)


CONVS = [
    nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1), padding_mode=mode)
    for mode in MODES
] + [nn.Conv2d(2, 3, (4, 3), padding="same", padding_mode=mode) for mode in MODES]


@pytest.mark.parametrize("conv", CONVS, ids=lambda c: f"{c.padding_mode}-{c.padding}")
@pytest.mark.parametrize(("block", "panel"), [(2048, 512), (7, 5)])
def test_moments_are_those_of_all_patches(conv: nn.Conv2d, block: int, panel: int, monkeypatch):
    monkeypatch.setattr(moments_module, "_BLOCK_ROWS", block)
    monkeypatch.setattr(moments_module, "_PANEL", panel)
    conv = conv.double()
    x = whole(5, 2, 6, 7)
    y = whole(5, 3, *conv(x).shape[2:], seed=2)
    patches = brute_force(conv, x)
    outputs = y.permute(0, 2, 3, 1).reshape(-1, 3)
    sums = MomentSums(spec_of(conv, "a"), per_image=None, seed=0)
    sums.add(x[:2], y[:2])
    sums.add(x[2:], y[2:])
    moments = sums.finish()
    n = len(patches)
    assert (moments.count, moments.images) == (n, 5)
    assert torch.equal(moments.second[0], patches.T @ patches / n)
    assert torch.equal(moments.mean, patches.sum(0) / n)
    assert torch.equal(moments.cross, outputs.T @ patches / n)
    assert torch.equal(moments.output_mean, outputs.sum(0) / n)
    assert torch.equal(moments.output_second, outputs.square().sum(0) / n)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_inputs_keep_their_sums(dtype: torch.dtype):
    """300^2 is infinite in float16 and 90,112 in bfloat16."""
    x = torch.full((4, 1, 128, 128), 1.0, dtype=dtype)
    x[:, :, ::2] = 300.0
    sums = MomentSums(spec_of(nn.Conv2d(1, 1, 1), "a"), per_image=None, seed=0)
    sums.add(x)
    moments = sums.finish()
    assert moments.second[0].item() == pytest.approx(45_000.5, rel=2e-5)
    assert moments.mean.item() == pytest.approx(150.5, rel=1e-6)
    assert moments.second[0].dtype == torch.float64


def test_moments_agree_with_unfold_on_real_numbers():
    x = torch.randn(6, 5, 12, 12, generator=generator())
    patches = F.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1).double()
    sums = MomentSums(spec_of(nn.Conv2d(5, 4, 3, padding=1), "a"), per_image=None, seed=0)
    sums.add(x)
    second = sums.finish().second[0]
    torch.testing.assert_close(second, patches.T @ patches / len(patches), rtol=1e-6, atol=1e-7)
    assert torch.equal(second, second.T)
    held = 4 * 2048 * 45  # patches that wait for more, in float32
    assert MomentSums.memory(sums.spec) == held + 8 * (45 * 45 + 45)


def test_sums_hold_half_of_each_matrix(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(moments_module, "_PANEL", 5)
    sums = MomentSums(spec_of(nn.Conv2d(5, 4, 3, padding=1), "a"), per_image=None, seed=0)
    x = torch.randn(6, 5, 12, 12, generator=generator())
    sums.add(x)
    sums.flush()
    held = sum(panel.nbytes for panels in sums.second for panel in panels) + sums.mean.nbytes
    assert MomentSums.memory(sums.spec) == held + 4 * 2048 * 45
    assert held < 0.6 * 8 * 45 * 45
    second = sums.finish().second[0]
    assert torch.equal(second, second.T)


def test_patches_of_small_batches_are_multiplied_in_blocks(monkeypatch: pytest.MonkeyPatch):
    x, sizes = whole(10, 2, 6, 6), []
    add = MomentSums._add_block

    def noted(sums: MomentSums, windows: torch.Tensor, *rest: Any) -> None:
        sizes.append(len(windows))
        add(sums, windows, *rest)

    monkeypatch.setattr(moments_module, "_BLOCK_ROWS", 100)
    monkeypatch.setattr(MomentSums, "_add_block", noted)
    sums = MomentSums(spec_of(nn.Conv2d(2, 3, 3, padding=1), "a"), per_image=None, seed=0)
    for image in x.split(1):
        sums.add(image)
    assert sums.finish().count == sum(sizes) == 360
    assert sizes == [72, 72, 72, 72, 72]  # two images each


def test_sampled_moments_are_unbiased_over_maps_of_different_sizes():
    """A head that runs on two maps: without weights, the small map would count too much."""
    conv = nn.Conv2d(2, 1, 3, padding=1)
    spec = replace(spec_of(conv, "head"), input_sizes=((12, 12), (3, 3)))
    large = torch.randn(8, 2, 12, 12, generator=generator()).double()
    small = 5 * torch.randn(8, 2, 3, 3, generator=generator(1)).double()

    def moments(per_image: int | None, seed: int) -> Moments:
        sums = MomentSums(spec, per_image=per_image, seed=seed)
        sums.add(large)
        sums.add(small)
        return sums.finish()

    full = moments(None, 0)
    assert (full.images, full.count) == (8, 8 * (144 + 9))
    drawn = [moments(5, seed) for seed in range(300)]
    assert drawn[0].count == 8 * 10
    mean = torch.stack([m.second[0] for m in drawn])
    deviation = mean.std(0) / len(drawn) ** 0.5
    assert ((mean.mean(0) - full.second[0]).abs() / deviation).max() < 5
    assert deviation.max() < 0.02 * full.second[0].max()  # the tolerance is no excuse


def test_long_patches_are_separated_at_equal_traces(monkeypatch):
    conv = nn.Conv2d(3, 2, (2, 3)).double()
    x = whole(4, 3, 6, 6)
    y = whole(4, 2, 5, 4, seed=1)

    def moments() -> Moments:
        sums = MomentSums(spec_of(conv, "a"), per_image=None, seed=0)
        sums.add(x, y)
        return sums.finish()

    exact = moments()
    monkeypatch.setattr(moments_module, "LARGEST", 17)
    channels, positions = moments().second
    assert channels.shape == (3, 3)
    assert positions.shape == (6, 6)
    full = exact.second[0].reshape(3, 6, 3, 6)
    product = torch.einsum("ij,kl->ikjl", channels, positions)
    close = torch.testing.assert_close
    close(product.reshape(18, 18).trace(), exact.second[0].trace())
    close(torch.einsum("ikjk->ij", product), torch.einsum("ikjk->ij", full))
    close(torch.einsum("ikil->kl", product), torch.einsum("ikil->kl", full))
    assert torch.equal(moments().cross, exact.cross)
    assert MomentSums.memory(spec_of(conv, "a")) == 4 * 2048 * 18 + 8 * (9 + 36 + 18)
    assert MomentSums.memory(spec_of(conv, "a"), outputs=True) == (
        4 * 2048 * (18 + 2) + 8 * (9 + 36 + 18 + 2 * 18 + 4)
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_inputs_must_be_finite(value: float):
    sums = MomentSums(spec_of(nn.Conv2d(1, 1, 1), "layer1"), per_image=None, seed=0)
    x = torch.ones(2, 1, 4, 4)
    x[1, 0, 2, 2] = value
    sums.add(x)
    with pytest.raises(DataError, match=r"^layer1: its input on the calibration images must be"):
        sums.finish()


def test_dead_layers_have_moments(monkeypatch):
    monkeypatch.setattr(moments_module, "LARGEST", 1)
    sums = MomentSums(spec_of(nn.Conv2d(2, 1, 3), "a"), per_image=None, seed=0)
    sums.add(torch.zeros(2, 2, 4, 4))
    assert all(not matrix.any() for matrix in sums.finish().second)
