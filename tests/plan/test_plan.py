"""Ranks, rules and reasons."""

import convolutions
import pytest
import torch
from planning import X, net
from torch import nn

import factorize
from factorize import methods
from factorize.errors import NoConvolutionError, RankError, UnsupportedLayerError
from factorize.methods.chain import chain_kernel
from factorize.spec import ConvSpec
from factorize.types import LayerPlan


def planned(**choice: object) -> dict[str, LayerPlan]:
    made = factorize.make_plan(net(), X, **choice)  # type: ignore[arg-type]
    return {layer.spec.name: layer for layer in made.layers}


def test_first_layer_and_pointwise_are_left_alone_by_rule_unless_included() -> None:
    layers = planned(rank=2)
    assert "reads only" in (layers["0"].skip_reason or "")
    assert "1x1" in (layers["2"].skip_reason or "")
    assert layers["1"].method
    layers = planned(rank=2, include=["0", "2"], method="channel_svd")
    assert layers["0"].method
    assert layers["2"].method
    assert layers["1"].skip_reason == "not matched by --include"


def test_a_layer_that_reads_few_channels_need_not_be_the_first() -> None:
    model = nn.Sequential(nn.Conv2d(8, 2, 3), nn.Conv2d(2, 8, 3), nn.Conv2d(8, 1, 3),
                          nn.Conv2d(1, 8, 3))  # fmt: skip
    layers = factorize.make_plan(model, torch.randn(1, 8, 16, 16), rank=1).layers
    reasons = [layer.skip_reason for layer in layers]
    assert reasons == [None, "reads only 2 channels", None, "reads only 1 channel"]


def test_few_outputs_that_are_cut_are_remarked() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 3, 3))
    x = torch.randn(1, 8, 16, 16)
    for choice in ({"rank": 0.5}, {"rank": 2}, {"energy": 0.4}):
        wide, few = factorize.make_plan(model, x, method="channel_svd", **choice).layers
        assert wide.method
        assert wide.notes == ()
        assert few.notes == (
            f"puts out 3 channels only, of which rank {few.rank[0]} of 3 loses a part: see what it "
            "costs, or --exclude it",
        )
    (_, few) = factorize.make_plan(model, x, rank=1.0, allow_costlier=True).layers
    assert few.notes == ()
    with torch.no_grad():
        model[1].weight[1:] = model[1].weight[:1]  # of rank 1: nothing is lost
    (_, few) = factorize.make_plan(model, x, rank=1, method="channel_svd").layers
    assert few.method
    assert few.notes == ()


def test_without_a_method_each_layer_gets_one_for_its_axes() -> None:
    x = torch.randn(1, 8, 16)
    model = nn.Sequential(nn.Conv1d(8, 16, 5), nn.Conv1d(16, 16, 3))
    made = factorize.make_plan(model, x, rank=0.25)
    assert [layer.method for layer in made.layers] == ["channel_svd"] * 2
    assert made.settings["method"] == "channel_svd"
    deep = nn.Sequential(nn.Conv3d(8, 16, 3), nn.Conv3d(16, 16, 3))
    made = factorize.make_plan(deep, torch.randn(1, 8, 8, 8, 8), rank=0.25)
    assert [layer.method for layer in made.layers] == ["spatial_svd"] * 2
    mixed = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Flatten(2), nn.Conv1d(16, 16, 3), nn.Flatten(),
                          nn.Linear(16 * 34, 40))  # fmt: skip
    made = factorize.make_plan(mixed, torch.randn(1, 8, 8, 8), rank=0.25, include=["*"])
    assert [layer.method for layer in made.layers] == ["spatial_svd", "channel_svd", "channel_svd"]
    assert made.settings["method"] == "spatial_svd,channel_svd"
    made = factorize.make_plan(model, x, rank=2, method="spatial_svd")
    assert "needs 2 spatial axes" in (made.layers[0].skip_reason or "")


def test_excluded_layers_say_so() -> None:
    assert planned(rank=2, exclude=["1"])["1"].skip_reason == "matched by --exclude"


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_glob_that_matches_nothing_is_an_error(option: str) -> None:
    with pytest.raises(NoConvolutionError, match=f"{option}= 'layer9.*' must match"):
        planned(rank=2, **{option: ["layer9.*"]})


def test_fixed_rank_is_clamped_and_that_is_said() -> None:
    layer = planned(rank=1000, allow_costlier=True)["3"]
    assert layer.rank == (8,)
    assert layer.notes == ("rank 1000 clamped to the maximum, 8",)
    assert planned(rank=8, allow_costlier=True)["3"].notes == ()


def test_share_is_of_the_maximum_of_each_entry() -> None:
    assert planned(rank=0.5, method="tucker2")["1"].rank == (8, 12)
    assert planned(rank=0.001, method="tucker2")["1"].rank == (1, 1)


def test_layer_that_would_cost_more_stays_dense_with_the_figures() -> None:
    layer = planned(rank=1.0)["1"]
    assert layer.method is None
    assert "would cost" in (layer.skip_reason or "")
    assert layer.macs == layer.spec.macs
    costly = planned(rank=1.0, allow_costlier=True)["1"]
    assert costly.macs > costly.spec.macs


@pytest.mark.parametrize("method", convolutions.square())
def test_energy_keeps_its_share(method: str) -> None:
    for energy in (0.3, 0.7, 0.9):
        made = factorize.make_plan(net(), X, energy=energy, method=method, allow_costlier=True)
        layer = next(one for one in made.layers if one.spec.name == "1")
        lost = {one.name: one.error for one in factorize.compress(
            net(), X, plan=made, latency=False).report.layers}["1"]  # fmt: skip
        # Tucker-2 keeps the share of each of its two unfoldings.
        entries = len(layer.rank)
        assert lost is not None
        assert lost**2 <= entries * (1 - energy) + 1e-9
        if entries == 1 and layer.rank[0] > 1:
            spec = layer.spec
            less = LayerPlan(spec, method, (layer.rank[0] - 1,), layer.variant)
            assert methods.factorize(less, net()[1].weight).error ** 2 > 1 - energy


@pytest.mark.parametrize("method", convolutions.square())
def test_vbmf_finds_the_planted_rank_in_noise(method: str) -> None:
    torch.manual_seed(0)
    spec = ConvSpec("", "conv2d", 32, 32, (3, 3), (1, 1), (1, 1), (1, 1), bias=False)
    chosen = methods.get(method)
    rank = chosen.rank_of(4 if method == "grouped" else 2, spec)  # one per group
    stages = chosen.stages(spec, rank, chosen.variants[0])
    kernel = chain_kernel(stages, tuple(torch.randn(s.kernel_shape).double() for s in stages))
    kernel = kernel / kernel.std() + 0.05 * torch.randn_like(kernel)
    model = nn.Conv2d(32, 32, 3, padding=1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(kernel)
    x = torch.randn(1, 32, 8, 8).double()
    (layer,) = factorize.make_plan(model, x, rank="vbmf", method=method).layers
    assert layer.rank == rank


def test_vbmf_that_finds_only_noise_takes_one_and_says_so() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(32, 32, 3, padding=1)
    (layer,) = factorize.make_plan(model, torch.randn(1, 32, 8, 8), rank="vbmf").layers
    assert layer.rank == (1,)
    assert "rank 0" in layer.notes[0]


@pytest.mark.parametrize("method", convolutions.square())
def test_the_better_order_is_taken(method: str) -> None:
    made = factorize.make_plan(net(), X, rank=3, method=method, allow_costlier=True)
    for layer in made.factorized:
        errors = {
            variant: methods.factorize(
                LayerPlan(layer.spec, method, layer.rank, variant),
                net()[int(layer.spec.name)].weight,
            ).error
            for variant in methods.get(method).variants
        }
        assert errors[layer.variant] <= min(errors.values()) + 1e-9


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({}, "one of .*rank.* is needed"),
        ({"rank": 3, "energy": 0.5}, "give either"),
        ({"rank": 0}, "got 0"),
        ({"rank": -0.5}, "got -0.5"),
        ({"rank": 1.5}, "got 1.5"),
        ({"rank": "many"}, "got many"),
        ({"rank": True}, "got True"),
        ({"energy": 0.0}, "share in"),
        ({"energy": 1.1}, "share in"),
    ],
)
def test_rules_out_of_range(choice: dict[str, object], message: str) -> None:
    with pytest.raises(RankError, match=message):
        planned(**choice)


def test_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(UnsupportedLayerError, match="must be one of .*tucker2.*got 'tukker'"):
        planned(rank=2, method="tukker")


def test_energy_tries_no_rank_that_saves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from factorize.tensor import cp as module

    tried = []
    fit = module.cp
    monkeypatch.setattr(
        module, "cp", lambda t, rank, **kw: tried.append(rank) or fit(t, rank, **kw)
    )
    layers = factorize.make_plan(net(), X, energy=0.9999, method="cp").layers
    spec = layers[1].spec
    dear = [r for r in tried if sum(
        s.macs for s in methods.get("cp").stages(spec, (r,), "")) >= spec.macs]  # fmt: skip
    assert tried
    assert not dear
    assert "would cost" in (layers[1].skip_reason or "")


def test_energy_tries_all_ranks_that_save_at_the_width_that_it_uses() -> None:
    from factorize.plan.choose import _most_that_saves

    spec = ConvSpec("", "conv2d", 512, 512, (3, 3), (1, 1), (1, 1), (1, 1), input_sizes=((7, 7),))
    method = methods.get("block_term")
    most, width = _most_that_saves(method, spec, "")
    assert width == 16
    macs = [sum(s.macs for s in method.stages(spec, (r, width), "")) for r in (most, most + 1)]
    assert macs[0] < spec.macs <= macs[1]


@pytest.mark.parametrize("rank", [1.0, 0.5, 8])
def test_at_the_limit_an_order_that_is_not_exact_is_remarked(rank: float) -> None:
    """One output: its limit is 1, at which the pointwise first is cheaper, and loses nearly all."""
    model = nn.Sequential(nn.Conv1d(64, 64, 16), nn.Conv1d(64, 1, 16))
    how = {"rank": rank, "method": "channel_svd"}
    last = factorize.make_plan(model, torch.rand(1, 64, 64), **how).layers[1]
    assert last.variant == "pointwise_first"
    assert last.error is not None
    assert f"this one loses {last.error:.0%} of the weights" in last.notes[-1]
    last = factorize.make_plan(model, torch.rand(1, 64, 64), allow_costlier=True, **how).layers[1]
    assert last.error == pytest.approx(0, abs=1e-6)
    assert not any("loses" in note for note in last.notes)
