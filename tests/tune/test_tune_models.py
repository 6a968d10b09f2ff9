"""Models and data of all kinds: how they are fine-tuned, and which cannot be."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from tuning import dataset, equal, net

from factorize.errors import DataError, UnsupportedLayerError
from factorize.tune import FinetuneConfig, finetune, recalibrate
from factorize.types import Data

pytestmark = pytest.mark.usefixtures("one_thread")


class Endless:
    """Does not say how many batches there are."""

    def __iter__(self):
        return iter([])


class Emptied:
    """Has batches in the first epoch only."""

    def __init__(self, batches):
        self.batches = list(batches)[:1]

    def __len__(self):
        return 1

    def __iter__(self):
        while self.batches:
            yield self.batches.pop()


def test_outputs_that_are_no_logits():
    class Heads(nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 1, 1)

        def forward(self, x):
            y = self.conv(x)
            return {"out": y, "aux": (self.other(y),)}

    original, model = Heads(0), Heads(1)
    result = finetune(model, original, dataset(labelled=False), FinetuneConfig(8, lr=3e-2))
    assert result.history[-1]["distance"] < 0.5 * result.history[0]["distance"]


def test_only_what_requires_a_gradient_is_tuned():
    model = net(1)
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    last = model[-1].weight.clone()
    values = iter([0.0, 1.0])
    finetune(model, net(0), dataset(), FinetuneConfig(1), score=lambda m: next(values))
    assert torch.equal(model[0].weight, before)
    assert not torch.equal(model[-1].weight, last)
    model.requires_grad_(False)
    with pytest.raises(UnsupportedLayerError, match="requires a gradient"):
        finetune(model, net(0), dataset(), FinetuneConfig(1))


def test_what_cannot_be_tuned_is_said():
    model = net(1)
    with pytest.raises(UnsupportedLayerError, match="share"):
        finetune(model, model, dataset(), FinetuneConfig(1))
    unknown = replace(dataset(), classes=None)
    with pytest.raises(DataError, match=r"0\.\.1 .*got 0\.\.3"):
        finetune(net(1, outputs=2), net(0, outputs=2), unknown, FinetuneConfig(1))
    endless = Data(Endless(), [], None, False, None, "endless")
    with pytest.raises(DataError, match="length"):
        finetune(model, net(0), endless, FinetuneConfig(1))
    emptied = replace(dataset(), train=Emptied(dataset().train))
    with pytest.raises(DataError, match="train: must have batches in every epoch, got none"):
        finetune(model, net(0), emptied, FinetuneConfig(2))
    boxes = nn.Sequential(nn.Conv2d(3, 1, 1))
    boxes.forward = lambda x: ["no tensor"]
    with pytest.raises(DataError, match="floating tensor"):
        finetune(boxes, net(0), dataset(), FinetuneConfig(1))


def test_a_last_batch_of_one_image_has_no_statistics():
    model = net(1)
    model[1] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8))
    data = dataset(count=33)
    result = finetune(model, net(0), data, FinetuneConfig(1))
    assert result.steps == 2
    assert all(math.isfinite(h["distance"]) for h in result.history)


def test_channels_last_with_kernels_of_five_axes():
    def volumes(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv3d(3, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())

    batches = [(torch.randn(8, 3, 4, 4, 4),) for _ in range(2)]
    data = Data(batches, batches, None, labelled=False, classes=None, source="noise")
    result = finetune(volumes(0), volumes(1), data, FinetuneConfig(1, channels_last=True))
    assert result.steps == 2


def test_labels_that_cannot_be_the_models_are_left_aside():
    data = dataset()  # four classes
    for outputs, used in ((4, True), (5, False)):
        runs = []
        for one in (data, replace(data, labelled=False)):
            original, model = net(0, outputs), net(1, outputs)
            runs.append(finetune(model, original, one, FinetuneConfig(1)).history)
        assert (runs[0] != runs[1]) == used
    assert all(entry["score"] == -entry["distance"] for entry in runs[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_tuned_in_float32_and_given_back(dtype):
    original, model = net(0).to(dtype), net(1).to(dtype)
    model[5] = model[1]  # shared
    model[4].bias.requires_grad_(False)
    teacher, before = copy.deepcopy(original), copy.deepcopy(model)
    slots = [*model.parameters(), *model.buffers()]
    data, seen = dataset(), []

    def score(m):
        seen.append({v.dtype for v in m.parameters()})
        return float(len(seen))

    assert math.isfinite(recalibrate(model, original, data).after)
    result = finetune(model, original, data, FinetuneConfig(2, lr=1e-2), score=score)
    assert seen == [{torch.float32}] * 3
    assert all(math.isfinite(entry["loss"]) for entry in result.history[1:])
    assert result.stopped is None
    assert all(a is b for a, b in zip(slots, (*model.parameters(), *model.buffers()), strict=True))
    for got, old in zip(slots, (*before.parameters(), *before.buffers()), strict=True):
        assert (got.dtype, got.requires_grad) == (old.dtype, old.requires_grad)
    assert model[0].weight.dtype == dtype
    assert not torch.equal(model[0].weight, before[0].weight)
    assert torch.equal(model[4].bias, before[4].bias)
    assert equal(original, teacher)
    assert original[0].weight.dtype == dtype
    assert model.eval()(torch.zeros(2, 3, 8, 8, dtype=dtype)).dtype == dtype


class Detector(nn.Module):
    """As many rows for an image as it finds objects."""

    def __init__(self, objects, dicts):
        super().__init__()
        self.dicts = dicts
        self.conv, self.bn, self.objects = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), objects

    def forward(self, x):
        boxes = self.bn(self.conv(x)).mean((2, 3))
        found = [row.expand(self.objects, 4) for row in boxes]
        return [{"boxes": rows} for rows in found] if self.dicts else found


@pytest.mark.parametrize(
    ("dicts", "objects", "match"),
    [(True, 3, "dict per image"), (False, 2, r"\(3, 4\) and \(2, 4\)")],
)
def test_what_detectors_find_cannot_be_compared(dicts, objects, match):
    for run in (recalibrate, lambda *args: finetune(*args, FinetuneConfig(1))):
        with pytest.raises(DataError, match=match + ".*--evaluate") as caught:
            run(Detector(3, dicts), Detector(objects, dicts), dataset(labelled=False))
        assert "\n" not in str(caught.value)
