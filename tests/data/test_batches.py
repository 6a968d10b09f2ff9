"""Batches as people have them, and the labels in them."""

import numpy as np
import pytest
import torch

from factorize.data.batches import label_kind, plain
from factorize.errors import DataError
from factorize.tensor.call import rows_of, to_model, twice

X = torch.rand(4, 3, 8, 8)
Y = torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize(
    "batch",
    [
        (X, Y),
        [X, Y],
        (X.numpy(), Y.numpy()),
        (X, Y[:, None]),
        (X, Y.int()),
        (X, [0, 1, 2, 1]),
        {"pixel_values": X, "labels": Y},
        {"image": X, "label": Y, "image_id": Y + 7},
        {"x": X, "y": Y[:, None]},
        {"input": X, "target": Y.to(torch.uint8)},
    ],
)
def test_images_and_class_numbers(batch):
    images, labels = plain(batch, "here")
    assert torch.equal(images, X)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, Y)
    assert label_kind((images, labels)) == (True, "")


@pytest.mark.parametrize("batch", [X, (X,), [X], X.numpy(), {"images": X, "path": ["a"] * 4}])
def test_images_alone(batch):
    (images,) = plain(batch, "here")
    assert torch.equal(images, X)
    assert label_kind((images,)) == (False, "")


def test_a_plain_batch_stays_what_it_is():
    images, labels = plain((X, Y), "here")
    assert images is X
    assert labels is Y


def test_bytes_are_scaled_and_other_integers_are_not():
    (images,) = plain((torch.full((2, 3, 4, 4), 51, dtype=torch.uint8),), "here")
    assert torch.allclose(images, torch.tensor(0.2))
    (tokens,) = plain((torch.arange(6).view(2, 3),), "here")
    assert tokens.dtype == torch.int64


def test_lists_of_images_and_several_inputs_are_told_apart():
    pictures = [torch.rand(3, 8, 9), torch.rand(3, 7, 8)]
    targets = ({"boxes": torch.rand(1, 4)}, {"boxes": torch.rand(2, 4)})
    images, labels = plain((tuple(pictures), targets), "here")  # as tuple(zip(*samples)) gives
    assert isinstance(images, list)
    assert isinstance(labels, list)
    assert isinstance(plain((pictures,), "here")[0], list)
    inputs, _ = plain([[X, torch.rand(4, 2)], Y], "here")  # as torch collates ((a, b), label)
    assert isinstance(inputs, tuple)
    signals, _ = plain(((torch.rand(4, 1, 9), torch.rand(4, 2, 9)), Y), "here")
    assert isinstance(signals, tuple)
    by_name, _ = plain(({"a": X, "b": X}, Y), "here")
    assert list(by_name) == ["a", "b"]


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        (None, "got no batch"),
        ("text", "got str"),
        ((), "got tuple"),
        (["a", "b"], "got list of str"),
        (Y, "got Tensor"),
        ({"audio": X, "labels": Y}, r"got \['audio', 'labels'\]"),
        (((X, X[:2]), Y), "got tuple of tuple"),
    ],
)
def test_batches_without_images_are_refused(batch, match):
    with pytest.raises(DataError, match=f"here: .*{match}") as caught:
        plain(batch, "here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (torch.tensor([[0, 1, 1]] * 4), "multi-hot, int64 of shape (4, 3)"),
        (torch.eye(4), "multi-hot, float32 of shape (4, 4)"),
        (torch.rand(4), "float32 of shape (4,)"),
        (torch.zeros(4, 8, 8, dtype=torch.long), "int64 of shape (4, 8, 8)"),
        (["cat", "dog", "cat", "dog"], "list of str"),
        (np.array(["cat", "dog"] * 2), "ndarray"),
        ([{"boxes": X}] * 4, "list of dict"),
        (Y[:3], "int64 of shape (3,)"),
    ],
)
def test_other_labels_are_named(labels, match):
    assert label_kind(plain((X, labels), "here")) == (False, match)


def test_integers_reach_a_model_as_integers():
    model = torch.nn.Linear(1, 1).double()
    tokens, images = to_model((torch.arange(3), X), model)
    assert tokens.dtype == torch.int64
    assert images.dtype == torch.float64


def test_samples_of_a_batch_are_taken_from_all_of_its_parts():
    pictures = [X[0], X[1, :, 1:], X[2]]
    mask = torch.tensor([True, False, True])
    kept = rows_of({"a": X[:3], "b": (pictures, Y[:3]), "scale": 2.0}, mask)
    assert torch.equal(kept["a"], X[:3:2])
    assert [v.shape for v in kept["b"][0]] == [X[0].shape] * 2
    assert kept["b"][1].tolist() == [0, 2]
    assert kept["scale"] == 2.0
    doubled = twice({"a": X[:3], "b": (pictures, Y[:3])})
    assert len(doubled["a"]) == len(doubled["b"][0]) == 6
    assert doubled["b"][1].tolist() == [0, 1, 2, 0, 1, 2]
