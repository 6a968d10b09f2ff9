"""Calibration: which patches, their moments, who gets them, and the file."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import convolutions
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from factorize.calibrate import (
    MomentSums,
    check,
    collect,
    collect_each,
    load_calibration,
    outputs_at,
    sample,
    save_calibration,
)
from factorize.calibrate import moments as moments_module
from factorize.errors import DataError, OutputError
from factorize.graph import effective_weight
from factorize.graph.find import find
from factorize.graph.spec import spec_of
from factorize.spec import ConvSpec
from factorize.tensor.moments import Moments

# torch tells that an even kernel with padding="same" needs a copy.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

MODES = ("zeros", "reflect", "replicate", "circular")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def whole(*shape: int, seed: int = 0) -> Tensor:
    """Whole numbers in float64: sums of their products are exact, in any order."""
    return torch.randint(-4, 5, shape, generator=generator(seed)).double()


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
@pytest.mark.parametrize("block", [2048, 7])
def test_moments_are_those_of_all_patches(conv: nn.Conv2d, block: int, monkeypatch):
    monkeypatch.setattr(moments_module, "_BLOCK_ROWS", block)
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
    assert MomentSums.memory(sums.spec) == 8 * (45 * 45 + 45)


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
    assert MomentSums.memory(spec_of(conv, "a")) == 8 * (9 + 36 + 18)
    assert MomentSums.memory(spec_of(conv, "a"), outputs=True) == 8 * (9 + 36 + 18 + 2 * 18 + 4)


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


class Net(nn.Module):
    """Two maps, a convolution used twice and named twice, batch norm, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.twice = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.again = self.twice
        self.last = nn.Conv2d(4, 2, 3, stride=2, padding=1)
        self.head = nn.Linear(2, 3)
        self.heads = self.forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        x = F.relu(self.twice(self.drop(self.norm(self.first(x)))))
        x = self.last(self.again(F.max_pool2d(x, 2)))
        self.heads += 1
        return self.head(x.mean((2, 3)))


def net() -> tuple[Net, dict[str, ConvSpec]]:
    torch.manual_seed(0)
    model = Net()
    found = (site.spec for site in find(model, torch.zeros(1, 1, 8, 8)))
    specs = {spec.name: spec for spec in found if spec.kind == "conv2d"}
    model.heads = model.forwards = 0
    return model, specs


IMAGES = torch.randn(23, 1, 8, 8, generator=generator(5)).split(6)


def same(a: Moments, b: Moments) -> bool:
    tensors = zip((*a.second, a.mean), (*b.second, b.mean), strict=True)
    return (a.count, a.images) == (b.count, b.images) and all(torch.equal(x, y) for x, y in tensors)


@pytest.mark.parametrize("per_image", [None, 3])
def test_passes_do_not_change_the_result_and_keep_to_the_memory(per_image: int | None):
    model, specs = net()
    assert list(specs) == ["first", "twice", "last"]
    size = {name: 2 * MomentSums.memory(spec) for name, spec in specs.items()}
    runs, steps = {}, []
    batches = 4 + 4  # each batch of six has an image that is held out
    for memory, passes in (
        (1e9, 1), (size["twice"] + size["last"], 2), (size["first"], 3), (0, 3)
    ):  # fmt: skip
        model.forwards = 0
        steps.clear()
        runs[memory] = collect(
            model, specs, IMAGES, memory=memory, per_image=per_image, seed=3,
            progress=lambda stage, done, total, values: steps.append((done, total)),
        )  # fmt: skip
        assert model.forwards == passes * batches
        assert steps[-1] == (23 * passes, 23 * passes)
        assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    for run in runs.values():
        for name, layer in run.layers.items():
            assert same(layer.fit, runs[1e9].layers[name].fit)
            assert same(layer.held_out, runs[1e9].layers[name].held_out)
    reordered = {name: specs[name] for name in ("last", "first", "twice")}
    other = collect(model, reordered, IMAGES, per_image=per_image, seed=3)
    assert all(same(other.layers[name].fit, runs[0].layers[name].fit) for name in specs)
    changed = collect(model, specs, IMAGES, per_image=per_image, seed=4)
    assert same(changed.layers["first"].fit, runs[0].layers["first"].fit) == (per_image is None)


def test_a_pass_ends_at_its_last_layer():
    model, specs = net()
    collect(model, specs, IMAGES)
    assert model.forwards == 8
    assert model.heads == 0
    unknown = {name: replace(spec, input_sizes=()) for name, spec in specs.items()}
    collect(model, unknown, IMAGES)
    assert model.heads == 8  # who knows how often they are called


def test_a_module_used_twice_gets_all_its_calls_under_each_name():
    model, specs = net()
    specs["again"] = replace(specs["twice"], name="again")
    found = collect(model, specs, IMAGES)
    assert list(found.layers) == list(specs)
    moments = found.layers["twice"].fit
    assert same(moments, found.layers["again"].fit)
    assert moments.images == 23 - 4
    assert moments.count == (64 + 16) * 19
    inputs: list[Tensor] = []
    hook = model.twice.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    model.eval()
    with torch.no_grad():
        model(torch.cat([image[None] for i, image in enumerate(torch.cat(IMAGES)) if i % 5 != 4]))
    hook.remove()
    patches = torch.cat([sample(specs["twice"], x.double(), None, generator())[0] for x in inputs])
    expected = patches.T @ patches / len(patches)
    torch.testing.assert_close(moments.second[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 23])
@pytest.mark.parametrize("batch", [1, 4, 50])
def test_held_out_images_are_never_in_the_fit(count: int, batch: int):
    """Image i has the value 2^(i/2): the sum of the squares tells which images went in."""
    conv = nn.Conv2d(1, 1, 1).double()
    values = 2 ** (torch.arange(count).double() / 2)
    images = values.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).split(batch)
    found = collect(conv, {"": spec_of(conv, "", ((2, 2),))}, images).layers[""]

    def members(moments: Moments) -> set[int]:
        total = round(moments.second[0].item() * moments.images)
        return {i for i in range(count) if total >> i & 1}

    fit, held_out = members(found.fit), members(found.held_out)
    assert fit.isdisjoint(held_out)
    assert fit | held_out == set(range(count))
    assert held_out == ({i for i in range(count) if i % 5 == 4} or {count - 1})
    assert (found.fit.images, found.held_out.images) == (len(fit), len(held_out))


def test_one_image_is_not_enough():
    conv = nn.Conv2d(1, 1, 1)
    with pytest.raises(DataError, match=r"^calibration images: there must be at least 2.*got 1"):
        collect(conv, {"": spec_of(conv, "")}, [torch.zeros(1, 1, 2, 2)])


def test_the_model_is_left_as_it_was():
    model, specs = net()
    model.train()
    model.drop.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    collect(model, specs, IMAGES)
    assert torch.equal(torch.get_rng_state(), state)
    bad = [torch.zeros(3, 2, 8, 8)]
    with pytest.raises(DataError, match=r"^calibration images: .*\(2, 2, 8, 8\)"):
        collect(model, specs, bad)
    poisoned = [torch.full((3, 1, 8, 8), torch.nan)]
    with pytest.raises(DataError, match=r"^first: its input"):
        collect(model, specs, poisoned)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_layer_that_the_images_do_not_reach():
    model, specs = net()
    model.spare = nn.Conv2d(1, 1, 3)
    specs["spare"] = spec_of(model.spare, "spare")
    with pytest.raises(DataError, match=r"^spare: must be called with the calibration images"):
        collect(model, specs, IMAGES)


class Wary(nn.Module):
    """Tries again where a layer raises, computes in bfloat16 and inference mode, by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3)

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            try:
                return self.conv(input=x)
            except Exception:
                return self.conv(input=x)


def test_what_the_model_switches_on_does_not_reach_the_sums():
    model = Wary()
    x = torch.randn(40, 1, 6, 6, generator=generator())
    spec = spec_of(model.conv, "conv", ((6, 6),))
    layer = collect(model, {"conv": spec}, [x]).layers["conv"]
    assert layer.fit.count == 32 * 16
    fit = x[torch.arange(40) % 5 != 4]
    patches = F.unfold(fit, 3).transpose(1, 2).flatten(0, 1).double()
    expected = patches.T @ patches / len(patches)
    torch.testing.assert_close(layer.fit.second[0], expected, rtol=1e-5, atol=1e-6)
    assert not layer.fit.mean.is_inference()
    assert not layer.fit.second[0].is_inference()


def test_images_are_counted_where_the_model_takes_them():
    """A model may cut them into tiles before its layers."""
    conv = nn.Conv2d(1, 1, 3)
    model = nn.Sequential(nn.PixelUnshuffle(2), nn.Flatten(0, 1), nn.Unflatten(0, (-1, 1)), conv)
    spec = spec_of(conv, "3", ((4, 4),))
    layer = collect(model, {"3": spec}, IMAGES).layers["3"]
    assert (layer.fit.images, layer.held_out.images) == (19, 4)
    assert layer.fit.count == 19 * 4 * 4


def test_layer_by_layer_holds_one_pass_at_a_time():
    model, specs = net()
    stream = collect_each(model, specs, IMAGES, memory=0)
    names = []
    for passes, (name, _) in enumerate(stream, start=1):
        assert model.forwards == 8 * passes
        names.append(name)
    assert names == list(specs)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, specs = net()
    path = tmp_path / "layers.safetensors"
    save_calibration(collect(model, specs, IMAGES, source="some images"), path)
    return path


def test_a_file_holds_it_all_in_float32(tmp_path: Path, monkeypatch):
    model, specs = net()
    monkeypatch.setattr(moments_module, "LARGEST", 35)  # separates `twice` and `last`
    found = collect(model, specs, IMAGES, source="23 images")
    crossed = MomentSums(specs["first"], per_image=None, seed=0)
    crossed.add(IMAGES[0], whole(6, 4, 8, 8).float())
    found.layers["first"] = replace(found.layers["first"], held_out=crossed.finish())
    path = tmp_path / "a.safetensors"
    save_calibration(found, path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    read = load_calibration(path)
    assert read.source == "23 images"
    assert read.specs == specs
    assert list(read.layers) == list(specs)
    for name, layer in found.layers.items():
        for part in ("fit", "held_out"):
            wanted, got = getattr(layer, part), getattr(read.layers[name], part)
            assert (wanted.count, wanted.images) == (got.count, got.images)
            assert len(wanted.second) == len(got.second)
            for key in ("second", "mean", "cross", "output_mean", "output_second"):
                ours, theirs = getattr(wanted, key), getattr(got, key)
                assert (ours is None) == (theirs is None)
                ours, theirs = ((x,) if isinstance(x, Tensor) else x or () for x in (ours, theirs))
                for x, y in zip(ours, theirs, strict=True):
                    assert y.dtype == torch.float64
                    assert torch.equal(x.float().double(), y)
    assert read.layers["first"].held_out.cross is not None
    save_calibration(read, path)
    again = load_calibration(path)
    assert all(same(again.layers[name].fit, read.layers[name].fit) for name in specs)


def test_float32_in_the_file_costs_nothing_that_counts(tmp_path: Path):
    """Strongly correlated inputs, a fit by regression: the rounding costs less than 1e-6 of it."""
    x = torch.randn(64, 4, 24, 24, generator=generator()).double()
    x = F.avg_pool2d(F.avg_pool2d(x, 5, 1), 5, 1)
    conv = nn.Conv2d(4, 6, 3).double()
    sums = MomentSums(spec_of(conv, "a"), per_image=None, seed=0)
    sums.add(x)
    second = sums.finish().second[0]
    rows, kept = whole(6, 36), torch.arange(0, 36, 2)

    def error(made_with: Tensor) -> float:
        gap = rows.clone()
        gram = made_with[kept][:, kept]
        gap[:, kept] -= torch.linalg.solve(gram, (rows @ made_with[:, kept]).T).T
        return float(((gap @ second) * gap).sum())

    assert torch.linalg.cond(second) > 1e3
    assert error(second.float().double()) / error(second) - 1 < 1e-6


def test_a_file_is_replaced_whole_or_not_at_all(saved: Path, tmp_path: Path, monkeypatch):
    calibration = load_calibration(saved)
    before = saved.read_bytes()

    def fails(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("factorize.calibrate.file.save_file", fails)
    with pytest.raises(OutputError, match=r"layers\.safetensors: .* cannot be written"):
        save_calibration(calibration, saved)
    assert saved.read_bytes() == before
    assert list(tmp_path.iterdir()) == [saved]
    with pytest.raises(OutputError, match=r"cannot be written"):
        save_calibration(calibration, tmp_path / "no" / "folder.safetensors")


def rewritten(path: Path, **changes: str | None) -> None:
    """The same tensors under other metadata."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    metadata |= changes
    save_file(load_file(path), path, {k: v for k, v in metadata.items() if v is not None})


def entries(path: Path) -> list:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["layers"])


def test_files_that_are_no_calibration(saved: Path, tmp_path: Path):
    def refused(rule: str, path: Path = saved) -> None:
        with pytest.raises(DataError) as caught:
            load_calibration(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert rule in message
        assert "\n" not in message

    whole_file = saved.read_bytes()
    refused("readable", tmp_path / "missing.safetensors")
    refused("readable", tmp_path)
    for length in (0, 5, 100, len(whole_file) - 1):
        saved.write_bytes(whole_file[:length])
        refused("whole safetensors file")
    saved.write_bytes(struct.pack("<Q", 2**60) + whole_file[8:])
    refused("whole safetensors file")
    saved.write_bytes(b"PK\x03\x04" + bytes(100))
    refused("whole safetensors file")
    save_file({"weight": torch.zeros(2)}, saved)
    refused('must say "format"')


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"format": "pt"}, 'must say "format": "factorize-calibration", got \'pt\''),
        ({"version": "2"}, "version must be 1, got '2'"),
        ({"layers": None}, "must describe each layer, got KeyError"),
        ({"layers": "{"}, "must describe each layer, got JSONDecodeError"),
        ({"layers": "[" * 100_000}, "must describe each layer, got RecursionError"),
        ({"layers": "{}"}, "must describe each layer, got TypeError: not a list"),
        ({"layers": "[1]"}, "must describe each layer, got TypeError"),
        ({"layers": '[{"name": "a"}]'}, "must describe each layer, got KeyError"),
        ({"layers": '[{"name": [], "conv": {}}]'}, "must describe each layer, got TypeError"),
    ],
)  # fmt: skip
def test_metadata_that_is_wrong(saved: Path, changes: dict[str, str | None], rule: str):
    rewritten(saved, **changes)
    with pytest.raises(DataError) as caught:
        load_calibration(saved)
    assert rule in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("where", "value", "rule"),
    [
        (("name",), "other", "is not an ungrouped layer of that name"),
        (("conv", "kind"), "conv1d", "is not an ungrouped layer"),
        (("conv", "kernel"), [3], "is not an ungrouped layer"),
        (("conv", "kernel"), 3, "TypeError"),
        (("conv", "kernel"), [3, 5], "first.fit.second.0 must be float32 of shape [15, 15]"),
        (("conv", "kernel"), ["3", 3], "has a weight of shape"),
        (("conv", "in_channels"), 10**12, "first.fit.second.0 must be float32 of shape"),
        (("conv", "in_channels"), -1, "has a weight of shape"),
        (("conv", "groups"), 0, "is not an ungrouped layer"),
        (("conv", "surprise"), 0, "TypeError"),
        (("fit", "count"), 0, "numbers of patches and images"),
        (("fit", "images"), "7", "numbers of patches and images"),
        (("held_out",), {}, "KeyError"),
    ],
)  # fmt: skip
def test_a_layer_that_is_described_wrongly(saved: Path, where: tuple[str, ...], value, rule: str):
    layers = entries(saved)
    entry = layers[0]
    for key in where[:-1]:
        entry = entry[key]
    entry[where[-1]] = value
    rewritten(saved, layers=json.dumps(layers))
    with pytest.raises(DataError) as caught:
        load_calibration(saved)
    assert rule in str(caught.value)
    assert str(caught.value).startswith(f"{saved}: ")


def test_a_layer_named_twice(saved: Path):
    rewritten(saved, layers=json.dumps([*entries(saved), entries(saved)[0]]))
    with pytest.raises(DataError, match=r"must name each layer once"):
        load_calibration(saved)


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("first.fit.mean", None, "must hold the tensor 'first.fit.mean'"),
        ("twice.held_out.second.0", None, "must hold the tensor 'twice.held_out.second.0'"),
        ("first.fit.mean", torch.zeros(8), "of shape [9] for its layer, got F32 [8]"),
        ("first.fit.mean", torch.zeros(9).double(), "of shape [9] for its layer, got F64 [9]"),
        ("first.fit.mean", torch.full((9,), torch.inf), "first.fit.mean must be finite"),
        ("first.fit.cross", torch.zeros(4, 9), "must hold the tensor 'first.fit.output_mean'"),
    ],
)  # fmt: skip
def test_tensors_that_are_wrong(saved: Path, key: str, value: Tensor | None, rule: str):
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(saved) | {key: value}
    save_file({k: v for k, v in tensors.items() if v is not None}, saved, metadata)
    with pytest.raises(DataError) as caught:
        load_calibration(saved)
    assert rule in str(caught.value)
    assert str(caught.value).startswith(f"{saved}: ")


def test_a_calibration_is_of_its_own_model(saved: Path):
    _, specs = net()
    calibration = load_calibration(saved)
    check(calibration, specs)
    check(calibration, {"twice": replace(specs["twice"], input_sizes=((4, 4),))})
    with pytest.raises(DataError, match=r"^new: the calibration must have this layer"):
        check(calibration, {"new": replace(specs["first"], name="new")})
    with pytest.raises(
        DataError,
        match=r"^last: .* stride is \(2, 2\) in the calibration and \(1, 1\) in the model",
    ):
        check(calibration, {"last": replace(specs["last"], stride=(1, 1))})
