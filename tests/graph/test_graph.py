"""The walker: what it finds, and that rewriting keeps everything else."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from rewriting import X, assert_same_function, conv, full
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import factorize
from factorize import methods
from factorize.graph import build_chain, effective_weight, rewrite_
from factorize.graph.spec_of import spec_of
from factorize.types import LayerPlan


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
    assert full(model).layers[0].notes == ("1 hook(s) on the layer are on its chain",)


def test_rewrite_in_place_returns_the_same_model() -> None:
    model = nn.Sequential(conv(), nn.ReLU())
    reference = copy.deepcopy(model)
    assert factorize.rewrite_(model, full(model)) is model
    assert isinstance(model[0], nn.Sequential)
    assert_same_function(reference, model)


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
