"""Data in the forms that people have it, from one end of the program to the other."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import factorize
from factorize import Data, FinetuneConfig, FitConfig
from factorize.data.as_data import as_data
from factorize.errors import DataError
from factorize.measure.quality import accuracy
from factorize.run.steps import finetune
from factorize.tune import recalibrate

pytestmark = pytest.mark.usefixtures("one_thread")

torch.manual_seed(0)
X, Z = torch.rand(40, 3, 12, 12), torch.rand(40, 2)
Y = torch.arange(40) % 4
EXAMPLE = torch.zeros(1, 3, 12, 12)


def body():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
    )  # fmt: skip


def net(outputs=4):
    torch.manual_seed(1)
    return nn.Sequential(body(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, outputs))


def compressed(model, example, data, **how):
    return factorize.compress(
        model.eval(), example, rank=0.25, data=data, latency=False, device="cpu", **how
    )


class Both(nn.Module):
    """Takes an image and two numbers."""

    def __init__(self):
        super().__init__()
        self.body, self.head = body(), nn.Linear(10, 4)

    def forward(self, image, numbers):
        return self.head(torch.cat((self.body(image).mean((2, 3)), numbers), 1))


class Detector(nn.Module):
    """Takes a list of images of any size, as torchvision's do; how much it finds depends on it."""

    def __init__(self):
        super().__init__()
        self.body, self.head = body(), nn.Conv2d(8, 4, 1)

    def forward(self, images, targets=None):
        assert not self.training, "targets should not be none when in training mode"
        high, wide = (max(image.shape[i] for image in images) for i in (1, 2))
        whole = torch.stack(
            [nn.functional.pad(v, (0, wide - v.shape[2], 0, high - v.shape[1])) for v in images]
        )
        found = self.head(self.body(whole)).flatten(2).movedim(1, 2)
        return [{"boxes": one[one[:, 0] > one[:, 0].mean()]} for one in found]


@pytest.mark.parametrize("how", ["weights", "outputs", "sequential"])
def test_a_model_of_several_inputs(how):
    torch.manual_seed(2)
    model, loader = Both(), DataLoader(TensorDataset(X, Z, Y), batch_size=8, collate_fn=_in_pairs)
    fit = FitConfig(how, reconstruct=how != "weights")
    made = compressed(model, (EXAMPLE, Z[:1]), loader, fit=fit, finetune=1)
    assert set(made.report.quality["finetuned"]) >= {"top1", "agreement"}
    assert not any("skipped" in remark for remark in made.report.notes)
    by_name = [({"image": X, "numbers": Z}, Y)]
    same = [((X, Z), Y)]
    a, b = (
        accuracy(model, as_data(source).train, reference=made.model) for source in (by_name, same)
    )
    assert a == b


def _in_pairs(samples):
    x, z, y = (torch.stack(parts) for parts in zip(*samples, strict=True))
    return [[x, z], y]


def test_recipes_for_images_refuse_several_inputs():
    data = [((X, Z), Y)]
    for options in ({"flip": True}, {"mixup": 0.2}):
        with pytest.raises(DataError, match="several inputs"):
            finetune(Both(), Both(), data, FinetuneConfig(1, **options))


@pytest.mark.parametrize("how", ["outputs", "sequential"])
def test_a_detector_is_compressed_with_lists_of_images(how):
    model = Detector().eval()
    sizes = [(12, 14), (12, 12), (10, 14), (14, 12)]
    batches = [
        ([torch.rand(3, *size) for size in sizes], [{"boxes": torch.rand(1, 4)}] * 4)
        for _ in range(4)
    ]
    made = compressed(model, [EXAMPLE[0]], batches, fit=FitConfig(how))
    (told,) = [remark for remark in made.report.notes if "recalibration" in remark]
    assert told.startswith("batch-norm recalibration skipped: model: its outputs must have")
    assert any("labels of train are not used: list of dict" in r for r in made.report.notes)
    assert "agreement" not in made.report.quality["rewritten"]
    with pytest.raises(DataError, match="as of a detector"):
        compressed(model, [EXAMPLE[0]], batches, finetune=1)
    plan = factorize.make_plan(model, [EXAMPLE[0]], rank=0.25)
    factorize.rewrite(model, plan, data=batches)


@pytest.mark.parametrize("form", ["loader", "list", "dicts", "path"])
def test_data_in_any_form_tunes(form, tmp_path):
    import numpy as np

    np.savez(tmp_path / "a.npz", images=X.numpy(), labels=Y.numpy())
    source = {
        "loader": DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True),
        "list": [(X[:20], Y[:20, None]), (X[20:], Y[20:, None])],
        "dicts": [{"pixel_values": X, "labels": Y}] * 2,
        "path": tmp_path / "a.npz",
    }[form]
    model = net().eval()
    made = compressed(model, EXAMPLE, source, finetune=1)
    assert "top1" in made.report.quality["finetuned"]
    factorize.rewrite(model, made.plan, data=source)
    assert factorize.measure_quality(model, made.model, EXAMPLE, data=source)["agreement"] > 0
    assert finetune(made.model, model, source, FinetuneConfig(1)).steps > 0


def test_bytes_are_what_floats_are():
    whole = (X * 255).byte()
    model, results = net(), []
    for images in (whole, whole.float() / 255):
        made = compressed(model, EXAMPLE, [(images[:20], Y[:20]), (images[20:], Y[20:])])
        results.append(made.report.quality["rewritten"])
    assert results[0] == results[1]


def test_labels_count_by_the_models_outputs():
    """A few images of many classes lack some; folders of few classes have other numbers."""
    few = [(X, Y)]
    made = compressed(net(9), EXAMPLE, Data(few, few, few), finetune=FinetuneConfig(1))
    assert "top1" in made.report.quality["finetuned"]
    assert not any("labels" in remark for remark in made.report.notes)
    folders = Data(few, few, few, classes=4, source="folder")
    made = compressed(net(9), EXAMPLE, folders, finetune=FinetuneConfig(1))
    assert "top1" not in made.report.quality["finetuned"]
    assert made.report.quality["finetuned"]["agreement"] > 0
    told = [remark for remark in made.report.notes if "labels are not used" in remark]
    assert told == [
        "the model has 9 outputs, folder 4 classes, which it numbers in its own order: labels are "
        "not used"
    ]
    with pytest.raises(DataError, match=r"labels: must be in 0\.\.1"):
        compressed(net(2), EXAMPLE, Data(few, few, few))


def test_class_numbers_of_what_is_no_classifier_are_not_used():
    made = compressed(body(), EXAMPLE, [(X, Y)])
    assert "labels are not used: the model's outputs are no logits of classes" in (
        made.report.notes
    )


def test_recalibration_alone_says_what_it_cannot_do():
    images = Data([([X[0], X[1]],)], [([X[0]],)], labelled=False)
    with pytest.raises(DataError, match="as of a detector"):
        recalibrate(Detector().eval(), Detector().eval(), images)
