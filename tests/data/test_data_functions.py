"""Data that a function returns: loaders of its own, and what they lack."""

import pytest
from pictures import ids

from factorize.data.load_data import load_data
from factorize.errors import DataError
from factorize.measure.worth import measured_on

FUNCTIONS = """
import torch
from torch.utils.data import DataLoader, TensorDataset

def dataset(n):
    x = torch.zeros(n, 3, 4, 4)
    x[:, 0, 0, 0] = torch.arange(n) / 255
    return TensorDataset(x, torch.arange(n) % 2)

def pair():
    return DataLoader(dataset(50), batch_size=8, shuffle=True), DataLoader(dataset(10))

def three():
    full = DataLoader(dataset(20), batch_size=8)
    return {"train": full, "holdout": DataLoader(dataset(4)), "test": None}

def listed():
    return {"train": [(torch.zeros(4, 3, 4, 4),)] * 3}

def half_labelled():
    x, y = torch.zeros(4, 3, 4, 4), torch.zeros(4, dtype=torch.long)
    return [(x,)] * 2, [(x, y)]

def letters():
    return ["a", "b"], None

def once():
    return (b for b in []), None

def nothing():
    return 3

def leaving():
    raise SystemExit(0)

class Failing:
    def __iter__(self):
        raise OSError("disk gone")

def failing():
    return Failing(), None

def halting():
    return [(torch.rand(2, 1, 8, 8),), None], None

def broken():
    raise RuntimeError("no such disk")
"""


@pytest.fixture
def functions(tmp_path):
    path = tmp_path / "loaders.py"
    path.write_text(FUNCTIONS)
    return path


def test_function_with_a_holdout_taken_off_its_train_loader(functions):
    data = load_data(f"{functions}:pair", holdout=7)
    assert data.labelled
    train, held = ids(data.train), ids(data.holdout)
    assert len(held) == 7
    assert sorted(train + held) == list(range(50))
    assert train != sorted(train)
    assert len(ids(data.test)) == 10
    assert any("held out" in note for note in data.notes)


def test_function_with_its_own_holdout(functions):
    data = load_data(f"{functions}:three")
    assert len(ids(data.holdout)) == 4
    assert data.test is None
    data = load_data(f"{functions}:listed", holdout=6)
    assert not data.labelled
    assert sum(len(b[0]) for b in data.holdout) == 8
    assert any("first batches of train" in note for note in data.notes)


def test_the_report_says_whose_images_stand_in_for_a_test_split(functions, tmp_path):
    listed = load_data(f"{functions}:listed")
    assert measured_on(listed, None).endswith(":listed, training images, no test split")
    own = load_data(f"{functions}:three")
    assert measured_on(own, None).endswith("held-out images, also used to choose, no test split")
    assert measured_on(load_data(f"{functions}:pair"), None).endswith(":pair, test split")


def test_labels_that_only_one_split_has_are_not_dropped_silently(functions):
    data = load_data(f"{functions}:half_labelled")
    assert not data.labelled
    assert any(note.startswith("no labels in train:") for note in data.notes)
    assert not any("labels" in note for note in load_data(f"{functions}:listed").notes)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("letters", "got str"),
        ("once", "more than once"),
        ("nothing", "must return"),
        ("broken", "no such disk"),
        ("leaving", "the function failed: SystemExit"),
        ("failing", "a loader failed: OSError: disk gone"),
        ("halting", "a loader failed: TypeError"),
        ("missing", "missing"),
    ],
)
def test_functions_that_do_not_fit(functions, name, match):
    with pytest.raises(DataError, match=match) as caught:
        load_data(f"{functions}:{name}")
    assert "\n" not in str(caught.value)
