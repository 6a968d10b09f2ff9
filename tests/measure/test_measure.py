"""Costs against hand-worked and published figures; how models are called and laid out."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from fractions import Fraction
from math import prod

import pytest
import torch
import torchvision.models as tv
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from factorize.errors import DataError
from factorize.measure import count, environment
from factorize.spec import ConvSpec
from factorize.tensor.call import batch_size, call, evaluating, laid_out_, model_on

# torch warns that it pads a copy of the input for 'same' with an even kernel
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def spec(i: int, o: int, kernel: tuple, size: tuple, **changes) -> ConvSpec:
    n = len(kernel)
    base = ConvSpec(
        "c", f"conv{n}d", i, o, kernel, (1,) * n, (0,) * n, (1,) * n, bias=False,
        input_sizes=(size,),
    )  # fmt: skip
    return replace(base, **changes)


def build(s: ConvSpec) -> nn.Module:
    cls = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}[s.kind]
    return cls(
        s.in_channels, s.out_channels, s.kernel, s.stride, s.padding, s.dilation, s.groups, s.bias,
        s.padding_mode,
    )  # fmt: skip


def measured(stages: list[ConvSpec], batch: int = 2) -> tuple[int, int]:
    """Params and MACs of the built chain, by running it."""
    first = stages[0]
    x = torch.zeros(batch, first.in_channels, *first.input_sizes[0])
    return count(nn.Sequential(*map(build, stages)), x)[:2]


@pytest.mark.parametrize(
    ("stages", "macs"),
    [
        ([spec(1, 1, (3, 3), (5, 5))], [81]),
        ([spec(1, 1, (3, 1), (5, 5)), spec(1, 1, (1, 3), (3, 5))], [45, 27]),
        ([spec(3, 128, (3, 3), (7, 7))], [86_400]),
        ([spec(3, 3, (3, 3), (7, 7), groups=3), spec(3, 128, (1, 1), (5, 5))], [675, 9_600]),
        ([spec(3, 3, (5, 5), (12, 12), groups=3)], [4_800]),
        ([spec(3, 6, (5, 5), (12, 12), groups=3)], [9_600]),
    ],
)
def test_hand_worked_macs(stages, macs):
    assert [s.macs for s in stages] == macs
    assert measured(stages) == (sum(s.params for s in stages), sum(macs))


@pytest.mark.parametrize(("multiplier", "shape"), [(1, (1, 3, 8, 8)), (2, (1, 6, 8, 8))])
def test_depth_multiplier_shapes(multiplier, shape):
    s = spec(3, 3 * multiplier, (5, 5), (12, 12), groups=3)
    assert (1, s.out_channels, *s.output_sizes[0]) == shape
    assert build(s)(torch.zeros(1, 3, 12, 12)).shape == shape


@given(m=st.integers(1, 7), extra=st.integers(0, 20))
def test_spatial_ratio(m, extra):
    n = m + extra
    dense = spec(1, 1, (m, m), (n, n))
    chain = [spec(1, 1, (m, 1), (n, n)), spec(1, 1, (1, m), (n - m + 1, n))]
    ratio = Fraction(sum(s.macs for s in chain), dense.macs)
    assert ratio == Fraction(1, m) + Fraction(n, m * (n - m + 1))
    huge = 10**9  # the ratio of a large image is 2/m
    assert Fraction(1, m) + Fraction(huge, m * (huge - m + 1)) == pytest.approx(2 / m, rel=1e-6)


@given(h=st.integers(1, 7), i=st.integers(1, 16), o=st.integers(1, 64), size=st.integers(7, 20))
def test_depthwise_ratio(h, i, o, size):
    out = size - h + 1
    dense = spec(i, o, (h, h), (size, size))
    chain = [spec(i, i, (h, h), (size, size), groups=i), spec(i, o, (1, 1), (out, out))]
    assert Fraction(sum(s.macs for s in chain), dense.macs) == Fraction(h * h + o, h * h * o)


@pytest.mark.parametrize("kernel", [(3,), (3, 5), (2, 3, 5)])
def test_grouped_parameters(kernel):
    s = spec(8, 12, kernel, (6,) * len(kernel), groups=4, bias=True)
    assert s.params == (8 // 4) * prod(kernel) * 12 + 12
    assert measured([s]) == (s.params, s.macs)


def attributes() -> list[ConvSpec]:
    return [
        spec(8, 16, (3, 3), (9, 12), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        spec(8, 16, (4, 4), (9, 12), padding="same"),
        spec(8, 16, (3, 3), (9, 12), padding=(1, 1), padding_mode="reflect"),
        spec(8, 16, (3, 3), (9, 12), groups=8, bias=True),
        spec(8, 16, (3,), (9,), stride=(2,)),
    ]


@pytest.mark.parametrize("s", attributes(), ids=str)
def test_spec_agrees_with_the_counter(s):
    assert measured([s]) == (s.params, s.macs)


@pytest.mark.parametrize("groups", [1, 4])
def test_transposed_macs(groups):
    layer = nn.ConvTranspose2d(8, 16, 3, 2, groups=groups, bias=False)
    s = spec(8, 16, (3, 3), (5, 6), kind="conv_transpose2d", stride=(2, 2), groups=groups)
    assert s.macs == 8 * (16 // groups) * 9 * 30
    assert count(layer, torch.zeros(2, 8, 5, 6))[:2] == (s.params, s.macs)


def convolution_and_linear_macs(model: nn.Module, x: Tensor) -> int:
    """MACs by the closed forms alone."""
    total = 0

    def add(module, inputs, output):
        nonlocal total
        if isinstance(module, nn.Linear):
            total += module.in_features * module.out_features
        else:
            s = spec(
                module.in_channels, module.out_channels, module.kernel_size, inputs[0].shape[2:],
                stride=module.stride, padding=module.padding, dilation=module.dilation,
                groups=module.groups,
            )  # fmt: skip
            assert s.output_sizes == (tuple(output.shape[2:]),)
            total += s.macs

    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(add)
    with evaluating(model):
        model(x)
    return total


@pytest.mark.parametrize(
    ("name", "macs", "weights"),
    [
        ("resnet18", 1_814_073_344, tv.ResNet18_Weights.IMAGENET1K_V1),
        ("resnet50", 4_089_184_256, tv.ResNet50_Weights.IMAGENET1K_V1),
        ("vgg16", 15_470_264_320, tv.VGG16_Weights.IMAGENET1K_V1),
    ],
)
def test_published_counts(name, macs, weights):
    with torch.device("meta"):
        model = tv.get_model(name)
        x = torch.empty(2, 3, 224, 224)
    assert count(model, x) == (weights.meta["num_params"], macs, ())
    assert round(macs / 1e9, 3) == weights.meta["_ops"]
    assert convolution_and_linear_macs(model, x) == macs


def test_recurrent_and_attention_layers_count():
    x = torch.zeros(2, 6, 8)  # T = 6, E = 8
    assert count(nn.LSTM(8, 8, batch_first=True), x)[1:] == (6 * (8 + 8) * 4 * 8, ())
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    macs = 6 * 8 * 24 + 6 * 8 * 8 + 2 * 6 * 6 * 8 + 2 * 6 * 8 * 16
    assert count(encoder, x)[1:] == (macs, ())
    assert torch.backends.mha.get_fastpath_enabled()


def test_count_leaves_the_model_alone_and_counts_shared_parameters_once():
    first, second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, nn.BatchNorm2d(4).eval(), second)
    before = copy.deepcopy(model.state_dict())
    cost = count(model, torch.randn(3, 4, 5, 5))
    assert cost == (4 * 4 * 9 + 4 + 8, 2 * 4 * 4 * 9 * 25, ())
    assert [m.training for m in model] == [True, False, True]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_call_and_batch_size():
    x, y = torch.ones(3, 2), torch.ones(3, 2)
    assert call(lambda a: a, x) is x
    assert call(lambda a, b: (b, a), (x, y)) == (y, x)
    assert call(lambda a, b: a, {"b": y, "a": x}) is x
    assert call(lambda images: len(images), [x, y, x]) == 3
    assert [batch_size(v) for v in (x, (x, y), {"a": x}, [x, y])] == [3, 3, 3, 2]
    with pytest.raises(DataError, match="batch axis"):
        batch_size(3)


def test_channels_last_beside_kernels_of_five_axes():
    flat = [nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 1), nn.ConvTranspose2d(4, 6, 2)]
    wanted = [copy.deepcopy(one).to(memory_format=torch.channels_last).weight for one in flat]
    model = nn.ModuleList([*flat, nn.Conv3d(4, 6, 3), nn.Linear(4, 6)])
    before = [p.clone() for p in model.parameters()]
    assert laid_out_(model, torch.channels_last) is model
    assert [one.weight.stride() for one in flat] == [weight.stride() for weight in wanted]
    assert model[3].weight.is_contiguous()
    assert all(map(torch.equal, model.parameters(), before))
    laid_out_(model, torch.contiguous_format)
    assert all(p.is_contiguous() for p in model.parameters())


def test_a_model_elsewhere_is_copied_not_moved():
    model = nn.Conv2d(3, 4, 3)
    assert model_on(model, "cpu") is model
    assert model_on(model, "meta").weight.is_meta
    assert not model.weight.is_meta


def test_environment_is_ready_for_json():
    env = environment()
    assert json.loads(json.dumps(env)) == env
    assert env["torch"] == torch.__version__
    assert env["cores"] >= 1
    assert env["cpu"]
