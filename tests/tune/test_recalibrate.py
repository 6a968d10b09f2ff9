"""Batch-norm statistics that are computed anew, and kept where that is better."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from tuning import dataset, equal, net, pressed_at

from factorize.tune import recalibrate
from factorize.types import Data

pytestmark = pytest.mark.usefixtures("one_thread")


def test_recalibration_gives_mean_and_variance_of_the_layers_input():
    original = net(0).eval()
    with torch.no_grad():
        original[1].running_mean.normal_()
    model = copy.deepcopy(original)
    model[1].running_mean.fill_(50.0)  # so far off that the new statistics are better
    data = dataset(count=90, loader=False)  # the last batch is smaller
    result = recalibrate(model, original, data)
    assert result.applied
    assert result.after < result.before
    assert result.layers == 2
    with torch.no_grad():
        x = model[0](torch.cat([batch[0] for batch in data.train]))
    var, mean = torch.var_mean(x, dim=(0, 2, 3))
    assert torch.allclose(model[1].running_mean, mean, atol=1e-6)
    assert torch.allclose(model[1].running_var, var, rtol=1e-5)
    assert model[1].num_batches_tracked == original[1].num_batches_tracked
    # Deeper: train-mode batch norm before it, no dropout.
    with torch.no_grad():
        model[1].train()
        inner = torch.cat([model[:5](batch[0]) for batch in data.train])
    var, mean = torch.var_mean(inner, dim=(0, 2, 3))
    assert torch.allclose(model[5].running_mean, mean, atol=1e-5)
    assert torch.allclose(model[5].running_var, var, rtol=1e-4)


def test_recalibration_is_kept_where_it_is_better():
    data = dataset()
    original = net(0)
    original.train()
    with torch.no_grad():
        for _ in range(30):  # statistics of this very data
            for batch in data.train:
                original(batch[0])
    original.eval()
    model = copy.deepcopy(original)
    model[1].running_mean += 3
    result = recalibrate(model, original, data)
    assert result.applied
    assert result.after < result.before
    assert not model.training
    assert "better" in result.reason


@pytest.mark.parametrize("bad", [float("nan"), 100.0])
def test_recalibration_is_undone_where_it_is_not(bad):
    original = net(0).eval()
    model = copy.deepcopy(original)
    data = dataset()
    train = [(batch[0] * bad + bad,) for batch in data.train]
    result = recalibrate(
        model, original, Data(train, data.holdout, None, True, 4, "strange images")
    )
    assert not result.applied
    assert result.before == 0
    assert equal(model, original)
    assert "left as they were" in result.reason


def test_recalibration_is_undone_when_interrupted():
    original = net(0).eval()
    model = copy.deepcopy(original)
    with pytest.raises(KeyboardInterrupt):
        recalibrate(model, original, dataset(), progress=pressed_at(32))
    assert equal(model, original)
    assert not model[1]._forward_pre_hooks
    assert not model[1].training


def test_recalibration_without_batch_norm():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())
    never_called = nn.Linear(1, 1)
    result = recalibrate(model, never_called, dataset())
    assert not result.applied
    assert "no batch-norm" in result.reason


@pytest.mark.parametrize("own", [torch.Generator(), None])
def test_recalibration_draws_the_same_images_whatever_was_drawn_before(own):
    data, original = dataset(count=1200), net(0)

    def noisy(samples):
        images = torch.stack([sample[0] for sample in samples])
        return (images + 0.1 * torch.randn(images.shape),)

    train = DataLoader(
        data.train.dataset, batch_size=16, shuffle=True, generator=own, collate_fn=noisy
    )
    data = replace(data, train=train)
    with torch.no_grad():
        for batch in data.train:  # statistics of this very data
            original(batch[0])
    original.eval()
    models = [copy.deepcopy(original) for _ in range(2)]
    for seed, model in enumerate(models):
        model[1].running_mean += 3
        torch.manual_seed(seed)
        drawn = torch.get_rng_state()
        assert recalibrate(model, original, data).applied
        assert torch.equal(torch.get_rng_state(), drawn)
    assert equal(*models)
    assert train.sampler.generator is own


@pytest.mark.parametrize("moved", [3.0, 0.0])
def test_a_better_score_alone_keeps_no_statistics(moved: float):
    """They have to bring the outputs closer to the original's, and must not lower the score."""
    data = dataset()
    original = net(0)
    original.train()
    with torch.no_grad():
        for _ in range(30):
            for batch in data.train:
                original(batch[0])
    original.eval()
    model = copy.deepcopy(original)
    model[1].running_mean += moved
    seen: list[float] = []

    def score(output: torch.Tensor, was: torch.Tensor, batch: object) -> float:
        seen.append(0.0)
        return float(len(seen) > len(data.holdout) * 1.5) * sign  # the second time it is different

    for sign in (1.0, -1.0):
        seen.clear()
        outputs = replace(data.outputs, score=score)
        result = recalibrate(copy.deepcopy(model), original, replace(data, outputs=outputs))
        assert result.applied == (moved > 0 and sign > 0), result.reason
        assert "score" in result.reason
