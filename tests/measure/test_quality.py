"""Quality against direct computation: accuracy, agreement, and outputs of any structure."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from factorize import outputs
from factorize.errors import DataError
from factorize.measure import accuracy, agreement_on_random_input, own_names
from factorize.types import Metric


class Fixed(nn.Module):
    """Returns its input through a function."""

    def __init__(self, function=lambda x: x):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_top1_and_top5_by_hand():
    logits = torch.arange(21.0).repeat(4, 1)  # ranked: class 20, 19, 18, ...
    labels = torch.tensor([20, 16, 15, 19])
    batches = [(logits[:3], labels[:3]), (logits[3:], labels[3:])]
    assert accuracy(Fixed(), batches) == {"top1": 25.0, "top5": 75.0}
    assert accuracy(Fixed(), [(logits[:, 1:], labels - 1)]) == {"top1": 25.0}


def test_agreement_and_kl_against_direct_computation():
    torch.manual_seed(0)
    model, reference = nn.Linear(6, 5), nn.Linear(6, 5)
    x = torch.randn(10, 6)
    seen = []
    got = accuracy(
        model, [(x[:7],), (x[7:],)], reference=reference, labelled=False, progress=seen.append
    )
    p, q = (m(x).detach().double().softmax(1) for m in (reference, model))
    assert got["kl"] == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-9)
    same = (reference(x).argmax(1) == model(x).argmax(1)).double().mean()
    assert got["agreement"] == pytest.approx(100 * float(same))
    assert set(got) == {"agreement", "kl"}
    assert seen == [7, 3]


@dataclass
class Outputs:
    logits: Tensor
    loss: float = 0.0


@pytest.mark.parametrize(
    "wrap", [lambda y: (y, y), lambda y: {"logits": y}, lambda y: Outputs(logits=y)]
)
def test_logits_are_the_first_tensor_of_an_output(wrap):
    logits = torch.eye(3)
    got = accuracy(Fixed(wrap), [(logits, torch.tensor([0, 1, 1]))], reference=Fixed(wrap))
    assert got == pytest.approx({"top1": 200 / 3, "agreement": 100.0, "kl": 0.0})


def test_other_outputs_have_a_relative_difference_only():
    x = torch.ones(4, 2, 3, 3)
    got = accuracy(
        Fixed(lambda v: 1.5 * v), [(x[:1],), (x[1:],)], reference=Fixed(lambda v: v), labelled=False
    )
    assert got == pytest.approx({"relative_difference": 0.5})


def test_of_several_outputs_the_worst_leads():
    x = torch.ones(4, 2, 3, 3)
    other = Fixed(lambda v: OrderedDict(large=1e6 * v, small=1.5 * v))
    reference = Fixed(lambda v: OrderedDict(large=1e6 * v, small=v))
    got = accuracy(other, [(x[:1],), (x[1:],)], reference=reference, labelled=False)
    assert got == pytest.approx({
        "relative_difference": 0.5, "relative_difference large": 0.0,
        "relative_difference small": 0.5,
    })  # fmt: skip


def test_outputs_of_other_shape_are_not_compared():
    boxes = Fixed(lambda v: [{"boxes": v[:1, :4]}])
    fewer = Fixed(lambda v: [{"boxes": v[:0, :4]}])
    x = torch.ones(1, 4)
    assert accuracy(boxes, [(x,)], reference=fewer, labelled=False) == {}
    same = accuracy(boxes, [(x,)], reference=boxes, labelled=False)
    assert same == {"relative_difference": 0.0}


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "at least one sample"),
        ([(torch.ones(2, 3),)], "has no labels"),
        ([(torch.ones(2, 3), torch.tensor([0, 3]))], r"labels: must be in 0\.\.2.* got 3"),
        ([(torch.ones(2, 3), torch.tensor([-1, 0]))], "got -1"),
        ([(torch.ones(2, 3), torch.ones(2, 3))], r"shape \(2,\)"),
        ([(torch.ones(2, 3, 4, 4), torch.tensor([0, 0]))], "--evaluate"),
    ],
)
def test_data_that_does_not_fit(batches, message):
    with pytest.raises(DataError, match=message):
        accuracy(Fixed(), batches)


def test_accuracy_casts_to_the_models_dtype_and_restores_training_flags():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.9)).double()
    reference = copy.deepcopy(model).half()
    got = accuracy(model, [(torch.randn(8, 4),)], reference=reference, labelled=False)
    assert got["kl"] < 1e-4  # with dropout on it would be large
    assert all(m.training for m in model.modules())


def test_random_input_is_seeded_and_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    model, reference = nn.Linear(6, 5), nn.Linear(6, 5)
    state = torch.get_rng_state()
    x = torch.zeros(4, 6)
    got = [
        agreement_on_random_input(model, reference, x, seed=seed, samples=50) for seed in (1, 1, 2)
    ]
    assert got[0] == got[1] != got[2]
    assert torch.equal(state, torch.get_rng_state())
    itself = agreement_on_random_input(model, copy.deepcopy(model), x, seed=1, samples=1)
    assert itself == {"agreement": 100.0, "kl": 0.0}


def test_random_input_keeps_the_structure_of_the_example():
    seen = []

    class Two(nn.Module):
        def forward(self, image, index):
            seen.append((image.clone(), index))
            return F.one_hot(index, 4).float() + image

    example = {"image": torch.zeros(2, 4), "index": torch.tensor([1, 2])}
    agreement_on_random_input(Two(), Two(), example, seed=0, samples=3)
    assert len(seen) == 4  # two batches of two, two models
    assert all(image.abs().sum() > 0 for image, _ in seen)
    assert all(torch.equal(index, example["index"]) for _, index in seen)


def test_values_that_are_the_users_own_are_told_from_ours():
    """A metric's come first; what `accuracy` gives is nobody's own, whatever else there is."""
    found = {
        "top1": 90.0,
        "agreement": 95.0,
        "relative_difference, out": 0.1,
        "f1": 0.9,
        "brier": 1,
    }
    metric = Metric(lambda _: 0.0, "brier", higher_is_better=False)
    assert own_names(found, None, outputs.Outputs()) == {}
    assert own_names(found, metric, outputs.Outputs()) == {"f1": False, "brier": False}

    def f1(*_: object) -> float:
        return 0.0

    scored = own_names(found, metric, outputs.Outputs(score=f1))
    assert list(scored.items()) == [("brier", False), ("f1", True)]
