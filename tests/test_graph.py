"""The walker: what it finds, what it refuses, and that rewriting keeps everything else."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import factorize
from factorize import methods
from factorize.errors import NoConvolutionError, PlanError, UnsupportedLayerError
from factorize.graph import build_chain, check_layer, effective_weight, rewrite_
from factorize.graph.spec import spec_of
from factorize.types import LayerPlan

X = torch.randn(2, 8, 10, 10, generator=torch.Generator().manual_seed(0))


def conv(**options: object) -> nn.Conv2d:
    return nn.Conv2d(8, 8, 3, padding=1, **options)  # type: ignore[arg-type]


class Shared(nn.Module):
    """One module under two names, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv()
        self.second = self.first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(F.relu(F.max_pool2d(self.first(x), 2)))


class Tied(nn.Module):
    """Two modules with one weight tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(), conv()
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(F.relu(self.first(x)))


class Functional(nn.Module):
    """Reads one layer's weight itself; the other layer is an ordinary one."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.plain = conv(), conv()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(x, self.read.weight, self.read.bias, padding=1)
        return self.plain(F.relu(x))


class Branching(nn.Module):
    """Reads an attribute of a layer that it also calls."""

    def __init__(self) -> None:
        super().__init__()
        self.called = conv()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.called(x) / self.called.out_channels


class Sized(nn.Module):
    """Tells a layer the size that its output is to have."""

    def __init__(self) -> None:
        super().__init__()
        self.down = conv(stride=2)
        self.up = nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(x), output_size=x.shape[2:])


class Scaled(nn.Conv2d):
    """A subclass that computes something else."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


class Renamed(nn.Conv2d):
    """A subclass that is a convolution like any other."""

    origin = "somewhere"


def full(model: nn.Module, x: torch.Tensor = X, **options: object) -> factorize.Plan:
    return factorize.plan(model, x, rank=1.0, allow_costlier=True, **options)  # type: ignore[arg-type]


def assert_same_function(model: nn.Module, other: nn.Module, x: torch.Tensor = X) -> None:
    with torch.no_grad():
        expected, actual = copy.deepcopy(model).eval()(x), copy.deepcopy(other).eval()(x)
    assert (actual - expected).norm() < 1e-4 * expected.norm()


def test_sizes_and_order_are_those_of_the_run() -> None:
    model = nn.Sequential()
    model.add_module("late", nn.Conv2d(8, 8, (3, 1), 2))
    model.add_module("early", nn.Conv2d(8, 8, 3, padding="valid"))
    model.forward = lambda x: model.late(model.early(x))  # type: ignore[method-assign]
    early, late = factorize.find(model, X)
    assert (early.spec.name, early.spec.input_sizes) == ("early", ((10, 10),))
    assert early.spec.padding == (0, 0)
    assert (late.spec.name, late.spec.input_sizes, late.spec.output_sizes) == (
        "late", ((8, 8),), ((3, 4),))  # fmt: skip


def test_root_convolution_is_replaced() -> None:
    model = conv()
    made = factorize.rewrite(model, full(model))
    assert isinstance(made, nn.Sequential)
    assert isinstance(model, nn.Conv2d)
    assert_same_function(model, made)


def test_module_in_two_places_is_replaced_once_and_stays_shared() -> None:
    model = Shared()
    (site,) = factorize.find(model, X)
    assert (site.spec.name, site.aliases) == ("first", ("second",))
    assert site.spec.input_sizes == ((10, 10), (5, 5))
    assert site.spec.macs == (100 + 25) * 8 * 8 * 9
    made = factorize.rewrite(model, full(model))
    assert made.first is made.second
    assert isinstance(made.first, nn.Sequential)
    assert_same_function(model, made)


def test_module_in_two_places_may_be_named_by_either() -> None:
    model = Shared()
    (layer,) = full(model).layers
    made = methods.factorize(layer, model.first.weight)
    changed = rewrite_(copy.deepcopy(model), {"second": made})
    assert changed.first is changed.second
    assert_same_function(model, changed)


def test_tied_weights_stay_tied_with_biases_of_their_own() -> None:
    model = Tied()
    made = factorize.rewrite(model, full(model))
    assert made.first is not made.second
    for one, two in zip(made.first, made.second, strict=True):
        assert one.weight is two.weight
    assert made.first[1].bias is not made.second[1].bias
    assert_same_function(model, made)


def test_tie_that_breaks_is_told() -> None:
    plan = full(Tied(), exclude=["second"])
    assert plan.layers[0].notes == ("no longer shares its weight with second",)


def test_layer_whose_weight_the_model_reads_is_refused_and_the_model_stays_right() -> None:
    model = Functional()
    read, plain = sorted(full(model).layers, key=lambda layer: layer.spec.name, reverse=True)
    assert "bias, weight" in (read.skip_reason or "")
    assert plain.method
    assert_same_function(model, factorize.rewrite(model, full(model)))


def test_layer_whose_attributes_the_model_reads_is_refused() -> None:
    (layer,) = full(Branching()).layers
    assert "out_channels" in (layer.skip_reason or "")


def test_weight_used_by_another_kind_of_module_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Flatten(2), nn.Linear(100, 8))
    model[2].weight = nn.Parameter(torch.randn(8, 100))
    holder = nn.Module()
    holder.weight = model[0].weight
    model.add_module("holder", holder)
    model.forward = lambda x: model[1](model[0](x))  # type: ignore[method-assign]
    layer = next(one for one in full(model, include=["*"]).layers if one.spec.name == "0")
    assert "holder" in (layer.skip_reason or "")


def test_layer_that_is_told_its_output_size_is_refused() -> None:
    """A chain takes its input and nothing else; decoders say which of two sizes they want."""
    model = Sized()
    plan = full(model, include=["*"])
    assert "more than its input" in (plan.layers[1].skip_reason or "")
    assert_same_function(model, factorize.rewrite(model, plan))


def test_weight_used_by_a_convolution_the_other_way_round_is_refused() -> None:
    """An autoencoder with one weight: no factors of it would do for both."""
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.ConvTranspose2d(16, 8, 3))
    model[2].weight = model[0].weight
    for site, other in zip(factorize.find(model, X), "20", strict=True):
        assert site.tied == ()
        assert f"also used by {other}" in (site.blocked or "")


@pytest.mark.parametrize(
    ("shape", "positions"),
    [
        ((2, 8), ()),
        ((2, 5, 7, 8), (5, 7)),
        ((6, 5, 8), (3, 5)),  # windows of the samples
        ((4, 2, 8), (2, 2)),  # the sequence first
        ((5, 2, 8), (5,)),
    ],
)
def test_linear_layers_have_the_positions_of_one_sample(
    shape: tuple[int, ...], positions: tuple[int, ...]
) -> None:
    model = nn.ModuleList([conv(), nn.Linear(8, 4)])
    model.forward = lambda x: (model[0](x), model[1](torch.ones(shape)))  # type: ignore[method-assign]
    linear = factorize.find(model, X)[1].spec
    assert linear.input_sizes == (positions,)
    assert linear.macs == torch.Size(shape).numel() * 4 // len(X)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "old_weight_norm", "prune"])
def test_parametrised_weights_are_folded(kind: str, train: bool) -> None:
    layer = conv()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old ones say so
        if kind == "weight_norm":
            parametrizations.weight_norm(layer)
        elif kind == "spectral_norm":
            parametrizations.spectral_norm(layer)
        elif kind == "old_weight_norm":
            nn.utils.weight_norm(layer)
            layer.weight_g.data *= 3  # the plain weight is stale now, as after load_state_dict
        else:
            prune.random_unstructured(layer, "weight", 0.5)
    model = nn.Sequential(layer, nn.ReLU()).train(train)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plan = full(model)
    assert "folded" in plan.layers[0].notes[0]
    made = factorize.rewrite(model, plan)
    assert not parametrize.is_parametrized(made[0][0])
    assert_same_function(model, made)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [part.training for part in (model[0], *made[0])] == [train] * 3


def test_weight_that_a_hook_computes_is_the_one_of_the_next_call() -> None:
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(conv())
    stale = layer.weight.clone()
    layer.weight_g.data *= 3  # as load_state_dict would
    assert torch.allclose(effective_weight(layer), 3 * stale)
    assert torch.equal(layer.weight, stale)  # looking changes nothing


def test_subclass_with_its_own_forward_is_left_alone_and_a_plain_one_is_not() -> None:
    model = nn.Sequential(Scaled(8, 8, 3), Renamed(8, 8, 3))
    scaled, renamed = full(model).layers
    assert "Scaled has a forward of its own" in (scaled.skip_reason or "")
    assert renamed.method
    assert type(model[0]) is Scaled  # the watching subclass is gone
    assert type(model[1]) is Renamed
    assert_same_function(model, factorize.rewrite(model, full(model)))


@pytest.mark.parametrize(
    ("layer", "x", "reason"),
    [
        (nn.Conv1d(8, 8, 3), torch.randn(1, 8, 9), "needs 2 spatial axes"),
        (nn.Conv2d(8, 8, 3, dtype=torch.complex64), X.to(torch.complex64), "complex64"),
    ],
)
def test_other_layers_are_reported_with_the_reason(
    layer: nn.Module, x: torch.Tensor, reason: str
) -> None:
    (planned,) = full(nn.Sequential(layer), x).layers
    assert reason in (planned.skip_reason or "")
    assert planned.macs == planned.spec.macs > 0


def test_layer_that_the_example_does_not_reach_is_left_alone() -> None:
    model = nn.ModuleDict({"used": conv(), "unused": conv()})
    model.forward = lambda x: model["used"](x)  # type: ignore[method-assign]
    used, unused = full(model).layers
    assert used.method
    assert unused.skip_reason == "never called by the example input"


def test_channels_are_not_shuffled_without_a_batch_axis() -> None:
    model, options = nn.Sequential(nn.Conv2d(8, 8, 1)), {"method": "shuffled_grouped"}
    x = torch.randn(8, 4, 4)
    (layer,) = full(model, x, include=["*"], **options).layers
    assert layer.skip_reason == "called without a batch axis, which shuffled_grouped needs"
    made = full(model, x[None], include=["*"], **options)
    with pytest.raises(PlanError, match="0: cannot be factorized: called without a batch axis"):
        factorize.plan(model, x, edited=made)


def test_mode_grad_flags_and_dtype_are_kept() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(8), conv(bias=False)).to(torch.bfloat16)
    model[0].eval()
    model[0].weight.requires_grad_(False)
    made = factorize.rewrite(model, full(model, X.bfloat16()))
    assert [layer.training for layer in made[0]] == [False, False]
    assert [layer.training for layer in made[2]] == [True, True]
    assert not any(layer.weight.requires_grad for layer in made[0])
    assert made[0][1].bias.requires_grad
    assert all(layer.weight.requires_grad for layer in made[2])
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
    assert made[0][0].bias is None
    assert made[2][1].bias is None
    assert torch.equal(made[0][1].bias, model[0].bias)


def test_looking_changes_nothing() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(8), nn.Dropout())
    model[1].eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    generator = torch.random.get_rng_state()
    factorize.find(model, X)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model] == [True, False, True]
    assert torch.equal(generator, torch.random.get_rng_state())


def test_hooks_are_reported() -> None:
    model = nn.Sequential(conv())
    model[0].register_forward_hook(lambda *_: None)
    assert full(model).layers[0].notes == ("1 hook(s) on the layer dropped",)


def test_rewrite_in_place_returns_the_same_model() -> None:
    model = nn.Sequential(conv(), nn.ReLU())
    reference = copy.deepcopy(model)
    assert factorize.rewrite_(model, full(model)) is model
    assert isinstance(model[0], nn.Sequential)
    assert_same_function(reference, model)


def test_plan_of_another_model_changes_nothing() -> None:
    plan = full(nn.Sequential(conv(), conv()))
    other = nn.Sequential(conv(), nn.Conv2d(8, 8, 3, padding=1, stride=2))
    with pytest.raises(PlanError, match=r"1: stride is \(1, 1\) in the plan and \(2, 2\)"):
        factorize.rewrite_(other, plan)
    assert isinstance(other[0], nn.Conv2d)
    with pytest.raises(PlanError, match="no such module"):
        factorize.rewrite(nn.Sequential(conv()), plan)


def test_model_without_convolutions_is_refused() -> None:
    with pytest.raises(NoConvolutionError, match="at least one convolution"):
        factorize.find(nn.Linear(3, 3), torch.randn(1, 3))


def test_wrong_input_is_told_in_one_line() -> None:
    with pytest.raises(UnsupportedLayerError, match="must run on the example input") as caught:
        factorize.find(conv(), torch.randn(1, 3, 9, 9))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("attribute", [*vars(spec_of(conv(), ""))][1:-1])
def test_plan_holds_for_its_own_layer_only(attribute: str) -> None:
    layer = conv()
    spec = spec_of(layer, "c", ((10, 10),))
    check_layer(layer, replace(spec, input_sizes=((7, 7),)))  # another image is no other layer
    with pytest.raises(PlanError, match=f"^c: {attribute} is None in the plan"):
        check_layer(layer, replace(spec, **{attribute: None}))


class Reading(nn.Module):
    """Reads an attribute of a layer that it also calls."""

    def __init__(self, layer: nn.Module, attribute: str) -> None:
        super().__init__()
        self.layer, self.attribute = layer, attribute

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        getattr(self.layer, self.attribute)
        return self.layer(x)


@pytest.mark.parametrize("layer", [conv(), nn.Linear(10, 10)], ids=["conv", "linear"])
def test_whatever_a_chain_lacks_is_seen_when_it_is_read(layer: nn.Module) -> None:
    public = [name for name in (*vars(layer), *layer._parameters) if not name.startswith("_")]
    lacking = {name for name in public if not hasattr(nn.Sequential(), name)}
    assert {"weight", "bias"} < lacking
    for attribute in lacking | {"_conv_forward"} if isinstance(layer, nn.Conv2d) else lacking:
        sites = factorize.find(nn.Sequential(conv(), Reading(layer, attribute)), X)
        blocked = next(site.blocked for site in sites if site.spec.name == "1.layer")
        assert blocked == f"the model reads its {attribute} outside of the layer's own call"


def test_chain_is_on_the_device_of_its_layer() -> None:
    layer = conv()
    made = methods.factorize(full(layer).layers[0], layer.weight)
    chain = build_chain(made, layer.to("meta"))  # stands for any device but the CPU
    assert {parameter.device.type for parameter in chain.parameters()} == {"meta"}


def test_frozen_bias_stays_frozen() -> None:
    model = nn.Sequential(conv())
    model[0].bias.requires_grad_(False)
    made = factorize.rewrite(model, full(model))
    assert [p.requires_grad for p in made.parameters()] == [True, True, False]


@pytest.mark.parametrize("other", ["cp", "cp4"])
def test_tied_layers_that_are_factorized_apart_keep_their_own_weights(other: str) -> None:
    model = Tied()
    one, two = (
        methods.factorize(LayerPlan(spec_of(conv(), name), method, (3,), ""), model.first.weight)
        for name, method in (("first", "cp"), ("second", other))
    )
    two = replace(two, weights=tuple(weight / 2 for weight in two.weights))
    rewrite_(model, {"first": one, "second": two})
    for made, chain in ((one, model.first), (two, model.second)):
        for weight, stage in zip(made.weights, chain, strict=True):
            assert torch.equal(stage.weight, weight.float())


def test_stage_that_does_not_pad_has_no_padding_mode() -> None:
    """Else its ONNX graph would have a Pad of nothing."""
    model = nn.Sequential(conv(padding_mode="reflect"))
    made = factorize.rewrite(model, full(model, method="channel_svd"))
    assert {(stage.padding, stage.padding_mode) for stage in made[0]} == {
        ((1, 1), "reflect"), ((0, 0), "zeros")}  # fmt: skip


def test_linear_layer_that_sees_samples_folded_has_the_positions_of_one() -> None:
    model = nn.Sequential(conv(), nn.Flatten(0, 2), nn.Linear(10, 4))
    sites = factorize.find(model, X)
    assert sites[1].spec.input_sizes == ((80,),)


def test_layer_whose_bias_is_parametrised_is_refused() -> None:
    model = nn.Sequential(conv())
    parametrize.register_parametrization(model[0], "bias", nn.Tanh())
    assert full(model).layers[0].skip_reason == "its bias is parametrised"
