"""Outputs that are no logits: what is guessed, said, tuned by and reported."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from compressing import X, net
from torch import Tensor, nn

import factorize
from factorize.errors import DataError
from factorize.outputs import UNDECLARED, Outputs
from factorize.types import Data

G = torch.Generator().manual_seed(0)
PIXELS = torch.randn(24, *X.shape[1:], generator=G)
CLASSES = torch.randint(0, 5, (24,), generator=G)


def splits(labels: Tensor | None, outputs: Outputs = UNDECLARED) -> Data:
    batches = [
        (PIXELS[rows],) if labels is None else (PIXELS[rows], labels[rows])
        for rows in torch.arange(24).split(8)
    ]
    labelled = labels is not None and labels.ndim == 1 and not labels.is_floating_point()
    return Data(batches, batches[:1], batches[1:2], labelled, None, "pixels", outputs=outputs)


def compress(data: Data | None, **options: Any) -> factorize.Result:
    settings = {"rank": 4, "latency": False, "device": "cpu", **options}
    return factorize.compress(net(), X, data=data, **settings)


def kinds(result: factorize.Result) -> set[str]:
    return set(result.report.quality["rewritten"])


def told(result: factorize.Result) -> list[str]:
    return [note for note in result.report.notes if "outputs are taken for" in note]


@pytest.mark.parametrize(
    ("labels", "values", "note"),
    [
        (CLASSES, {"top1", "agreement", "kl"}, None),
        (None, {"agreement", "kl"}, "logits of"),
        (torch.rand(24, 5, generator=G), {"relative_difference"}, "for values"),
        (torch.rand(24, generator=G), {"relative_difference"}, "for values"),
        ((torch.rand(24, 5, generator=G) > 0.5).long(), {"agreement", "kl"}, "for multilabel"),
    ],
)  # fmt: skip
def test_what_outputs_mean_is_guessed_by_the_labels_and_told(
    labels: Tensor | None, values: set[str], note: str | None
) -> None:
    result = compress(splits(labels))
    assert kinds(result) == values
    notes = told(result)
    assert len(notes) == (note is not None)
    assert note is None or note in notes[0]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("logits", {"agreement", "kl"}), ("multilabel", {"agreement", "kl"}),
        ("values", {"relative_difference"}), ("embedding", {"cosine"}),
    ],
)  # fmt: skip
def test_what_is_said_is_not_guessed(kind: str, values: set[str]) -> None:
    for result in (
        compress(splits(None), outputs=kind),
        compress(splits(None, Outputs(kind))),
        compress(None, outputs=kind),
    ):
        assert kinds(result) == values
        assert not told(result)
        assert result.report.settings["outputs"]["kind"] == kind


def brightness(student: Tensor, teacher: Tensor, batch: Any) -> Tensor:
    assert len(batch[0]) == len(student) == len(teacher)
    return (student.mean() - teacher.mean()).abs()


brightness.higher_is_better = False


def test_a_score_of_ones_own_chooses_the_epoch_and_is_reported() -> None:
    result = compress(splits(CLASSES), score=brightness, finetune=2)
    assert {"brightness", "top1"} <= kinds(result)
    tuned = result.report.finetuning
    assert tuned is not None
    scores = {one["epoch"]: one["score"] for one in tuned["history"]}
    assert all(score <= 0 for score in scores.values())  # the negative of what is to be low
    assert scores[tuned["best_epoch"]] == max(scores.values())
    assert any(", brightness " in note for note in result.report.notes)


def test_a_loss_of_ones_own_is_lowered() -> None:
    seen: list[int] = []

    def loss(student: Tensor, teacher: Tensor, batch: Any) -> Tensor:
        assert len(batch[0]) == len(student) == len(teacher)
        seen.append(student.requires_grad)
        return (student[:, 0] - teacher[:, 0]).square().mean()

    recipe = factorize.FinetuneConfig(6, lr=2e-3, label_weight=0.0, control=False, may_stay=False)
    data = splits(None)
    made = compress(data, rank=1, loss=loss, finetune=recipe)
    assert any(seen)
    before = compress(data, rank=1).model
    first = [float((m(PIXELS)[:, 0] - net()(PIXELS)[:, 0]).square().mean().detach())
             for m in (before.eval(), made.model.eval())]  # fmt: skip
    assert first[1] < first[0]
    assert made.report.quality["finetuned"]["loss"] >= 0


@pytest.mark.parametrize("value", [1.0, torch.ones(3)])
def test_a_loss_that_is_no_scalar_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"^loss <lambda>: must return a tensor with one value"):
        compress(splits(CLASSES), loss=lambda *_: value, finetune=1)


def test_a_drop_of_what_there_is_no_score_of_is_refused_before_the_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "factorize.run.pipeline.run_search", lambda *_, **__: pytest.fail("searched")
    )
    drop = factorize.Budget(max_drop=0.2)
    with pytest.raises(DataError, match=r"Budget\(max_drop=\): needs outputs that are logits"):
        compress(splits(None), rank=None, outputs="values", budget=drop)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(DataError, match="must be auto or one of logits"):
        compress(splits(None), outputs="boxes")
    with pytest.raises(DataError, match="must be auto or one of logits"):
        replace(Outputs(), kind="boxes")


def test_finetune_alone_takes_the_kind_of_the_data() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS[0].numel(), 5)).eval()
    student = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS[0].numel(), 5))
    recipe = factorize.FinetuneConfig(1, label_weight=0.0)
    found = {
        kind: factorize.finetune(
            student, teacher, splits(None, Outputs(kind)), replace(recipe, may_stay=False)
        ).history[0]["distance"]
        for kind in ("logits", "values")
    }
    assert found["logits"] != found["values"]


def test_the_processes_that_help_know_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    compressing = import_module("factorize.run.compress")
    monkeypatch.setattr(compressing.processes, "is_main", lambda: False)
    monkeypatch.setattr(compressing, "assist", lambda _, data, __: seen.append(data) or [None] * 3)
    x = torch.randn(8, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    factorize.compress(net, x, rank=1, data=[(x,)], outputs="embedding")
    assert seen[0].outputs.kind == "embedding"
