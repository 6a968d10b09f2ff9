"""What outputs mean: distances of each kind, and what is guessed where nobody says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from factorize.errors import DataError
from factorize.outputs import OUTPUT_KINDS, Outputs
from factorize.tensor.output_kinds import agreement_of, distance_of, guess, kind_of, named_floats

G = torch.Generator().manual_seed(0)
S, T = (torch.randn(6, 5, generator=G, dtype=torch.float64) for _ in range(2))
MAPS = [torch.randn(2, 4, 3, 3, generator=G, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("kind", OUTPUT_KINDS)
@pytest.mark.parametrize("pair", [(S, T), tuple(MAPS)], ids=["rows", "maps"])
def test_distances_are_0_where_outputs_agree_and_positive_elsewhere(
    kind: str, pair: tuple[Tensor, Tensor]
) -> None:
    student, teacher = pair
    student = student.clone().requires_grad_()
    assert float(distance_of(teacher, teacher, kind)) == pytest.approx(0, abs=1e-12)
    far = distance_of(student, teacher, kind)
    assert far.ndim == 0
    assert float(far.detach()) > 1e-3
    far.backward()
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())


def test_distances_by_hand() -> None:
    p, q = T.softmax(1), S.softmax(1)
    assert float(distance_of(S, T, "logits")) == pytest.approx(float((p * (p / q).log()).sum() / 6))
    p, q = T.sigmoid(), S.sigmoid()
    each = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert float(distance_of(S, T, "multilabel")) == pytest.approx(float(each.sum() / 6))
    cosine = (F.normalize(S) * F.normalize(T)).sum(1)
    assert float(distance_of(S, T, "embedding")) == pytest.approx(float((1 - cosine).mean()))
    error = float((S - T).square().sum() / T.square().sum())
    assert float(distance_of(S, T, "values")) == pytest.approx(error)


def test_logits_of_maps_are_compared_at_each_position() -> None:
    student, teacher = MAPS
    rows = [v.permute(0, 2, 3, 1).reshape(-1, 4) for v in MAPS]
    whole = distance_of(student, teacher, "logits")
    assert float(whole) == pytest.approx(float(distance_of(*rows, "logits")))
    same = agreement_of(student, teacher, "logits")
    assert float(same) == float((rows[0].argmax(1) == rows[1].argmax(1)).double().mean())


def test_the_scale_of_an_embedding_does_not_count() -> None:
    assert float(distance_of(3 * T, T, "embedding")) == pytest.approx(0, abs=1e-12)
    assert float(distance_of(3 * T, T, "values")) == pytest.approx(4)


@pytest.mark.parametrize(
    ("shape", "declared", "kind"),
    [
        ((4, 10), "auto", "logits"), ((4, 1), "auto", "values"), ((4, 3, 8, 8), "auto", "values"),
        ((4,), "auto", "values"), ((4, 10), "values", "values"), ((4,), "logits", "values"),
        ((4, 1), "logits", "values"), ((4, 1), "multilabel", "multilabel"),
        ((4, 3, 8, 8), "logits", "logits"), ((4, 8), "embedding", "embedding"),
    ],
)  # fmt: skip
def test_the_kind_of_an_output(shape: tuple[int, ...], declared: str, kind: str) -> None:
    assert kind_of(torch.zeros(shape), declared) == kind


ONE_HOT = F.one_hot(torch.tensor([0, 1, 2, 3, 4, 0]), 5)


@pytest.mark.parametrize(
    ("output", "labels", "kind", "told"),
    [
        (S, torch.arange(6) % 5, "logits", None),
        (S, None, "logits", "no labels tell"),
        (S, torch.zeros(6, dtype=torch.int64), "logits", None),
        (S, torch.rand(6, 5), "values", "the labels are numbers"),
        (S, torch.rand(6), "values", "the labels are numbers"),
        (S, ONE_HOT, "logits", "one-hot"),
        (S, ONE_HOT.float(), "logits", "one-hot"),
        (S, (ONE_HOT + ONE_HOT.roll(1, 1)), "multilabel", "multi-hot"),
        (F.normalize(S), None, "embedding", "length 1"),
        (MAPS[0], None, "values", None),
        ({"boxes": S, "scores": T}, None, "auto", None),
    ],
)
def test_what_is_guessed(
    output: object, labels: Tensor | None, kind: str, told: str | None
) -> None:
    found, note = guess(output, labels)
    assert found == kind
    if told is None:
        assert note is None
    else:
        assert note is not None
        assert told in note
        assert "Declare --outputs" in note


def test_outputs_have_names() -> None:
    assert list(named_floats(S)) == [""]
    assert list(named_floats((S, [T, S]))) == ["0", "1.0", "1.1"]
    assert list(named_floats({"out": S, "index": torch.arange(3), "aux": T})) == ["out", "aux"]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(DataError, match=r"^outputs: must be auto or one of logits, .* got 'boxes'"):
        Outputs("boxes")
