"""The walker: layers, models and plans that it refuses or leaves alone, with the reason."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from rewriting import X, assert_same_function, conv, full
from torch import nn
from torch.nn.utils import parametrize

import factorize
from factorize.errors import NoConvolutionError, PlanError, UnsupportedLayerError
from factorize.graph import check_layer
from factorize.graph.spec_of import spec_of


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
        (nn.Conv1d(8, 8, 3), torch.randn(1, 8, 9), "cp4 needs 2 spatial axes"),
        (nn.Conv2d(8, 8, 3, dtype=torch.complex64), X.to(torch.complex64), "complex64"),
    ],
)
def test_other_layers_are_reported_with_the_reason(
    layer: nn.Module, x: torch.Tensor, reason: str
) -> None:
    plan = factorize.make_plan(nn.Sequential(layer), x, method="cp4", rank=1.0, include=["*"])
    (planned,) = plan.layers
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
        factorize.make_plan(model, x, edited=made)


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


def test_layer_whose_bias_is_parametrised_is_refused() -> None:
    model = nn.Sequential(conv())
    parametrize.register_parametrization(model[0], "bias", nn.Tanh())
    assert full(model).layers[0].skip_reason == "its bias is parametrised"
