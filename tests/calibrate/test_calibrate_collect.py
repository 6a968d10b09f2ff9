"""Calibration: who gets which images, in how many passes, and what is left of that."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from calibrating import IMAGES, generator, net, same
from torch import Tensor, nn
from torch.nn import functional as F

from factorize.calibrate import MomentSums, collect, collect_each, sample
from factorize.errors import DataError
from factorize.graph.spec_of import spec_of
from factorize.tensor.moments import Moments


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


def test_images_held_out_give_as_many_patches_each_as_the_others(monkeypatch: pytest.MonkeyPatch):
    module = sys.modules["factorize.calibrate.collect"]
    monkeypatch.setattr(module, "PATCHES", 19 * 5)
    monkeypatch.setattr(module, "PATCHES_PER_ENTRY", 0)
    model, specs = net()
    for found in collect(model, specs, IMAGES).layers.values():
        assert found.fit.count / found.fit.images == found.held_out.count / found.held_out.images


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


def test_matrices_are_whole_for_one_layer_at_a_time(monkeypatch: pytest.MonkeyPatch):
    model, specs = net()
    finish, finished = MomentSums.finish, []

    def noted(sums: MomentSums, *rest: int) -> Moments:
        assert not sums._held  # all patches were added when the pass was over
        finished.append(sums.spec.name)
        return finish(sums, *rest)

    monkeypatch.setattr(MomentSums, "finish", noted)
    for number, (name, _) in enumerate(collect_each(model, specs, IMAGES), start=1):
        assert len(finished) == 2 * number
        assert finished[-2:] == [name, name]


def test_layer_by_layer_holds_one_pass_at_a_time():
    model, specs = net()
    stream = collect_each(model, specs, IMAGES, memory=0)
    names = []
    for passes, (name, _) in enumerate(stream, start=1):
        assert model.forwards == 8 * passes
        names.append(name)
    assert names == list(specs)
