"""Curves of errors, the nets that are run again with one kernel replaced, and their losses."""

import copy
from itertools import pairwise
from math import inf

import convolutions
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from factorize import calibrate, find, methods
from factorize.errors import DataError
from factorize.fit.layer import fit_layer
from factorize.methods import base
from factorize.methods.svd import SvdMethod
from factorize.methods.tucker2 import Tucker2
from factorize.search.curves import curves
from factorize.search.error_curve import Curve, Fit, curve_through, family_of
from factorize.search.reduced import reduced
from factorize.search.replay import Replay
from factorize.search.sensitivity import Divergences, Loss, Reaches
from factorize.spec import ConvSpec
from factorize.tensor.norm import Norm
from factorize.types import LayerPlan

ITERATIVE = ("cp", "cp4", "tucker2", "block_term")


class Net(nn.Module):
    """A residual block, a convolution called twice, in-place functions, a head."""

    def __init__(self, mute: bool = False, head: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.a = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.b = nn.Conv2d(16, 16, 3, padding=1)
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, head)
        self.mute = mute
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.stem(x).mul_(0.5))
        y = F.relu(self.norm(self.a(x)))
        x = x + self.b(y) * (0.0 if self.mute else 1.0)
        if self.fails:
            raise RuntimeError("the model's own")
        x = F.relu_(self.twice(x))
        x = F.relu_(self.twice(x))
        return self.head(x.mean((2, 3)))


def net(**options: object) -> Net:
    return Net(**options).eval()  # type: ignore[arg-type]


IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
BATCHES = list(IMAGES.split(5))


def specs_of(model: nn.Module) -> dict[str, ConvSpec]:
    sites = find(model, IMAGES[:1])
    specs = (site.spec for site in sites if site.spec.in_channels > 4)
    return {spec.name: spec for spec in specs if spec.kind == "conv2d"}


def conv(inputs: int, outputs: int, seed: int = 0) -> tuple[nn.Module, dict[str, ConvSpec]]:
    """A net of one layer, of random weights."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
    sites = find(model, torch.zeros(1, inputs, 8, 8))
    return model, {site.spec.name: site.spec for site in sites}


# A curve


def test_curve_is_exact_at_its_points_falls_between_and_never_exceeds_one():
    curve = curve_through(("cp", "", ()), {100: 0.5, 300: 0.1, 200: 0.2, 400: 0.15})
    assert [curve.at(x) for x in (100, 200, 300)] == [0.5, 0.2, 0.1]
    assert curve.at(400) == 0.1  # a fit that is worse by chance
    values = [curve.at(x) for x in range(0, 600, 10)]
    assert values[0] == 1.0
    assert all(a >= b > 0 for a, b in pairwise(values))


def test_curve_of_one_point_leads_from_all_that_there_is_to_it():
    curve = Curve("cp", "", (), (100,), (0.25,))
    assert curve.at(0) == 1.0
    assert curve.at(50) == pytest.approx(0.5)
    assert curve.at(100) == 0.25
    assert Curve("cp", "", (), (100,), (3.0,), inf).at(50) == 3.0


def test_family_is_what_does_not_grow_with_the_rank():
    _, specs = conv(32, 48)
    (spec,) = specs.values()
    assert family_of(methods.get("block_term"), spec, (64, 8)) == (8,)
    assert family_of(methods.get("tucker2"), spec, (16, 24)) == ()
    assert family_of(methods.get("cp"), spec, (40,)) == ()


# Curves without data


def rank_at(method: base.Method, spec: ConvSpec, curve: Curve, macs: int) -> tuple[int, ...]:
    """The rank of a point of a curve."""
    return next(
        rank
        for rank in method.ladder(spec, step=8, count=10**9)
        if family_of(method, spec, rank) == curve.family
        and sum(s.macs for s in method.stages(spec, rank, curve.variant)) == macs
    )


@pytest.mark.parametrize("channels", [(24, 16), (72, 96)])
def test_curves_without_data_are_the_errors_of_factorize(channels):
    """Exactly for an SVD and for small layers; within 20 % where they are estimated."""
    model, specs = conv(*channels)
    (spec,), weight = specs.values(), model[0].weight  # type: ignore[index]
    found = curves(model, specs, convolutions.square(), None)["0"]
    assert {curve.method for curve in found} == set(convolutions.square())
    for curve in found:
        method = methods.get(curve.method)
        exact = isinstance(method, SvdMethod) or max(channels) <= 64
        points = list(zip(curve.macs, curve.error, strict=True))
        for macs, error in points[:: 5 if isinstance(method, SvdMethod) else 1]:
            rank = rank_at(method, spec, curve, macs)
            plan = LayerPlan(spec, curve.method, rank, curve.variant)
            true = methods.factorize(plan, weight).error ** 2
            assert error == pytest.approx(true, rel=1e-6 if exact else 0.2), (curve.key, rank)


def test_stand_in_keeps_a_low_rank():
    """A layer of Tucker rank (24, 24): its stand-in is reproduced at that rank too."""
    torch.manual_seed(0)
    core, left, right = torch.randn(24, 24, 3, 3), torch.randn(128, 24), torch.randn(128, 24)
    weight = torch.einsum("abkl,oa,ib->oikl", core, left, right).double()
    _, specs = conv(128, 128)
    (spec,), method = specs.values(), methods.get("tucker2")
    small = reduced(spec, weight, Norm(), Norm())(method.stages(spec, (24, 24), ""))
    assert small.weight.shape == (64, 64, 3, 3)
    assert small.error(spec, method, (24, 24), "", seed=0) < 1e-6
    assert small.error(spec, method, (16, 16), "", seed=0) > 0.1


@pytest.mark.parametrize("variant", ["spatial_first", "pointwise_first"])
def test_stand_in_has_as_many_groups_as_the_layer(variant):
    """A share of them would be one, which loses far less."""
    torch.manual_seed(0)
    weight = torch.randn(256, 256, 3, 3).double()
    _, specs = conv(256, 256)
    (spec,), method = specs.values(), methods.get("grouped")
    for rank in ((96, 2), (128, 4), (256, 8)):
        small = reduced(spec, weight, Norm(), Norm())(method.stages(spec, rank, variant))
        known = method.predicted_error(weight, rank, variant) or 0.0
        estimated = small.error(spec, method, rank, variant, seed=0)
        assert estimated == pytest.approx(known**2, rel=0.1), rank


def test_method_registered_elsewhere_has_a_curve(monkeypatch):
    class Own(Tucker2):
        name = "own"

    monkeypatch.setitem(base._registry, "own", Own())
    model, specs = conv(24, 16)
    found = curves(model, specs, ["own", "tucker2"], None)["0"]
    assert [curve.method for curve in found] == ["own", "tucker2"]
    assert found[0].error == found[1].error


def test_layers_that_share_a_weight_are_fitted_once(monkeypatch):
    model, _ = conv(16, 16)
    model.append(nn.Conv2d(16, 16, 3, bias=False))  # type: ignore[operator]
    model[1].weight = model[0].weight  # type: ignore[index, union-attr]
    specs = {s.spec.name: s.spec for s in find(model, torch.zeros(1, 16, 8, 8))}
    made = []
    monkeypatch.setattr(
        methods, "factorize", lambda layer, *a, _f=methods.factorize, **k: made.append(layer)
        or _f(layer, *a, **k),
    )  # fmt: skip
    found = curves(model, specs, {"0": ["cp"], "1": ["cp", "tucker2"]}, None)
    assert {layer.spec.name for layer in made} == {"0"}
    assert len({(layer.method, layer.rank) for layer in made}) == len(made)
    assert [curve.method for curve in found["0"]] == ["cp"]
    assert [curve.method for curve in found["1"]] == ["cp", "tucker2"]
    assert found["0"][0].error == found["1"][0].error
    assert found["0"][0].macs[0] > found["1"][0].macs[0]  # of its own, smaller map


# Curves with data


def test_curves_with_data_are_those_of_fits_and_tell_their_kernels():
    model = net()
    specs = specs_of(model)
    moments = calibrate.collect(model, specs, BATCHES)
    told: list[tuple[str, Fit]] = []
    found = curves(
        model, specs, ["spatial_svd", "cp"], iter(moments.layers.items()),
        on_fit=lambda name, fit: told.append((name, fit)),
    )  # fmt: skip
    assert set(found) == {"a", "b", "twice"}
    for name, of_layer in found.items():
        weight: Tensor = model.get_submodule(name).weight.detach().double()  # type: ignore
        fits = {(f.key, f.macs): f for n, f in told if n == name}
        assert any(f.key is None for n, f in told if n == name)
        for curve in of_layer:
            for macs, error in zip(curve.macs, curve.error, strict=True):
                fit = fits[curve.key, macs]
                assert error <= fit.error + 1e-12
                parts = moments.layers[name].fit
                off = Norm(parts.second).relative_error(weight, fit.kernel)
                assert fit.error <= 1.01
                if fit.bias is None:
                    assert fit.error == pytest.approx(off**2, rel=1e-6)


def test_calibration_that_lacks_a_layer_is_told():
    model = net()
    specs = specs_of(model)
    moments = calibrate.collect(model, {"a": specs["a"]}, BATCHES)
    with pytest.raises(DataError, match=r"^b: the calibration must have the moments"):
        curves(model, specs, ["spatial_svd"], moments.layers.items())


def test_large_layer_with_data_is_estimated_in_the_norm_of_its_outputs():
    """Inputs of low rank: far less is lost than the weight alone tells."""
    model, specs = conv(80, 80)
    mixing = torch.randn(80, 8, generator=torch.Generator().manual_seed(2))
    x = torch.einsum("ci,nihw->nchw", mixing, torch.randn(20, 8, 8, 8))
    moments = calibrate.collect(model, specs, [x])
    names = ["tucker2", "spatial_svd", "depthwise_pointwise"]
    known = {c.key: c for c in curves(model, specs, names, moments.layers.items())["0"]}
    blind = {c.key: c for c in curves(model, specs, names, None)["0"]}
    share = specs["0"].macs * 0.35
    assert known.keys() == blind.keys()
    for key in known:
        if key[0] != "depthwise_pointwise":  # it cannot use that the channels are mixed
            assert known[key].at(share) < 0.3 * blind[key].at(share), key


def test_estimates_with_data_are_near_the_errors_of_fits():
    """Inputs that are smooth, and whose channels have much in common."""
    model, specs = conv(72, 72)
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(72, 72, generator=generator) * 0.97 ** torch.arange(72)
    noise = F.avg_pool2d(torch.randn(60, 72, 12, 12, generator=generator), 3, 1)
    moments = calibrate.collect(model, specs, [torch.einsum("ci,nihw->nchw", mixing, noise)])
    names = ["tucker2", "spatial_svd", "channel_svd"]
    ratios = {}
    for curve in curves(model, specs, names, moments.layers.items())["0"]:
        macs, error = curve.macs[0], curve.error[0]
        rank = rank_at(methods.get(curve.method), specs["0"], curve, macs)
        plan = LayerPlan(specs["0"], curve.method, rank, curve.variant)
        made = fit_layer(plan, model[0], moments.layers["0"], seed=0)  # type: ignore[index]
        ratios[curve.key] = error / made.error**2
    assert all(0.7 < ratio < 1.5 for ratio in ratios.values()), ratios


# Replay


@pytest.mark.parametrize("memory", [1e9, 3e4, 0])
@pytest.mark.parametrize("name", ["stem", "a", "b", "twice"])
def test_replay_is_equal_to_the_last_bit(name, memory):
    model = net()
    replay = Replay(model, BATCHES, memory=memory)
    other = copy.deepcopy(model)
    conv_ = other.get_submodule(name)
    with torch.no_grad():
        conv_.weight.mul_(torch.rand_like(conv_.weight))  # type: ignore[union-attr, operator]
    got = torch.cat(list(replay.run(name, conv_.weight.detach())))  # type: ignore[union-attr]
    with torch.no_grad():
        wanted = torch.cat([other(batch) for batch in BATCHES])
        same = torch.cat([model(batch) for batch in BATCHES])
    assert torch.equal(got, wanted.double())
    assert torch.equal(torch.cat(replay.outputs), same.double())
    assert not torch.equal(wanted, same)


def test_replay_computes_the_rest_of_the_net_only(monkeypatch):
    model = net()
    replay = Replay(model, BATCHES[:1])
    seen = []
    real = nn.Conv2d._conv_forward
    monkeypatch.setattr(
        nn.Conv2d, "_conv_forward", lambda self, *a: seen.append(self) or real(self, *a)
    )
    list(replay.run("b", model.b.weight.detach()))
    assert seen == [model.b, model.twice, model.twice]


def test_replay_leaves_the_model_as_it_was_even_if_it_fails():
    model = net().train()
    model.a.forward = own = model.a.forward  # type: ignore[method-assign]
    replay = Replay(model, BATCHES)
    model.fails = True
    with pytest.raises(RuntimeError, match="the model's own"):
        list(replay.run("a", model.a.weight.detach()))
    assert model.training
    assert model.a.__dict__["forward"] is own
    assert all("forward" not in m.__dict__ for m in (model.stem, model.b, model.head))


def test_replay_of_a_nested_output_and_of_none_that_can_be_compared():
    class Two(nn.Module):
        def __init__(self, usable: bool) -> None:
            super().__init__()
            self.conv, self.usable = nn.Conv2d(3, 4, 3), usable

        def forward(self, x: Tensor):
            y = self.conv(x)
            return {"map": y, "more": [y.mean((1, 2, 3))]} if self.usable else y.argmax(1)

    replay = Replay(Two(True), BATCHES)
    assert replay.outputs[0].shape == (5, 4 * 36 + 1)
    assert not replay.logits
    with pytest.raises(DataError, match=r"a floating tensor with a row for each image, got Tensor"):
        Replay(Two(False), BATCHES)


# Sensitivities and losses


def test_reach_is_nothing_where_nothing_comes_out():
    for mute in (False, True):
        model = net(mute=mute)
        specs = specs_of(model)
        reaches = Reaches(Replay(model, BATCHES), specs)
        moments = calibrate.collect(model, specs, BATCHES)
        curves(model, specs, ["channel_svd"], moments.layers.items(), on_fit=reaches)
        assert set(reaches.by_name) == set(specs)
        assert (reaches.by_name["b"] == 0) == (reaches.by_name["a"] == 0) == mute
        assert reaches.by_name["twice"] > 0


def test_reach_is_that_of_a_copy_of_the_net():
    model = net()
    specs = specs_of(model)
    replay, told = Replay(model, BATCHES), {}
    reaches = Reaches(replay, specs)

    def on_fit(name: str, fit: Fit) -> None:
        before = reaches.by_name.get(name)
        reaches(name, fit)
        if reaches.by_name[name] != before:
            told[name] = fit

    curves(model, specs, ["spatial_svd"], None, on_fit=on_fit)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.a.weight.copy_(told["a"].kernel)
        wanted, got = model(IMAGES).double(), other(IMAGES).double()
    moved = (got - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    assert reaches.by_name["a"] == pytest.approx(float(moved) / told["a"].error, rel=1e-3)


@pytest.mark.parametrize("head", [5, 1])
def test_divergence_of_logits_and_change_of_other_outputs(head):
    model = net(head=head)
    replay = Replay(model, BATCHES)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.b.weight.mul_(0.5)
        ours, theirs = other(IMAGES).double(), model(IMAGES).double()
    got = replay.divergence("b", other.b.weight.detach())
    if head == 1:
        assert got == replay.change("b", other.b.weight.detach())
    else:
        wanted = F.kl_div(
            ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="batchmean"
        )
        assert got == pytest.approx(float(wanted), rel=1e-3)
    assert replay.divergence("b", model.b.weight.detach()) == pytest.approx(0, abs=1e-12)


def test_divergences_are_curves_too():
    model = net()
    specs = specs_of(model)
    divergences = Divergences(Replay(model, BATCHES))
    errors = curves(model, specs, ["spatial_svd", "tucker2"], None, on_fit=divergences)
    found = divergences.curves(errors)
    for name, of_layer in found.items():
        assert [c.key for c in of_layer] == [c.key for c in errors[name]]
        for curve, error in zip(of_layer, errors[name], strict=True):
            assert curve.macs == error.macs
            fits = {f.macs: lost for f, lost in divergences.fits[name] if f.key == curve.key}
            assert curve.error[0] == fits[curve.macs[0]]


def test_divergence_where_only_an_error_is_known_lies_between_those_of_the_probes():
    divergences = Divergences(None)  # type: ignore[arg-type]
    empty = torch.empty(0)
    divergences.fits["x"] = [
        (Fit(None, 10, 0.4, empty), 0.8), (Fit(None, 20, 0.1, empty), 0.05),
    ]  # fmt: skip
    curve = Curve("cp", "", (), (10, 20, 30, 40), (0.8, 0.2, 0.1, 0.05))
    (got,) = divergences.curves({"x": [curve]})["x"]
    assert got.error == pytest.approx((1.6, 0.2, 0.05, 0.025))


def test_loss_adds_up_by_what_is_kept_and_is_infinite_without_a_curve():
    _, specs = conv(32, 32)
    (spec,) = specs.values()
    known = [
        Curve("block_term", "", (8,), (1000, 2000), (0.5, 0.25)),
        Curve("block_term", "", (32,), (1000, 2000), (0.75, 0.5)),
    ]
    loss = Loss(spec, known, reach=2.0)
    half = 2 * 0.6931471805599453
    assert loss("block_term", (64, 8), "", 1000) == pytest.approx(half)
    assert loss("block_term", (64, 4), "", 1000) == pytest.approx(half)  # the nearest width
    assert loss("block_term", (64, 32), "", 2000) == pytest.approx(half)
    assert loss("cp", (64,), "", 1000) == inf
    assert Loss(spec, known, reach=None)("block_term", (64, 8), "", 1000) == 0.5


def test_all_that_is_lost_is_still_a_number():
    _, specs = conv(32, 32)
    (spec,) = specs.values()
    loss = Loss(spec, [Curve("cp", "", (), (10,), (1.0,))])
    assert 0 < loss("cp", (1,), "", 0) < inf
