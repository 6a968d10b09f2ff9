"""Files and settings that no data can be read from are told in one line."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from pictures import RNG, fails, numbered, numbered_file, read_all

from factorize.data.load_data import load_data
from factorize.types import Preprocessing


@pytest.fixture
def npz(tmp_path):
    return numbered_file(tmp_path / "all.npz")


def test_missing_path_and_wrong_kind(tmp_path):
    fails("does not exist", tmp_path / "nothing")
    (tmp_path / "a.csv").write_text("1,2")
    fails("another kind of file", tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"pixels": numbered(5)}, "needs the key 'images'"),
        ({"images": numbered(5), "labels": np.zeros(4, int)}, r"shape \(5,\)"),
        ({"images": numbered(5), "labels": np.zeros(5)}, "must be integers"),
        ({"images": numbered(5), "labels": -np.ones(5, int)}, "0 or more"),
        ({"images": numbered(5, channels=2)}, "channels"),
        ({"images": numbered(5), "labels": np.full(5, 2**64 - 1, np.uint64)}, "must be below"),
        ({"images": numbered(5, size=0)}, r"H > 0, W > 0 .* got \(5, 0, 0, 3\)"),
        ({"images": numbered(5)[0, 0]}, "must be"),
        ({"images": numbered(5).astype(np.int64)}, "uint8 or float"),
        ({"images": numbered(0)}, "N > 0"),
        ({"images": numbered(2)}, "at least 3"),
        ({"images": np.array([{"run": "me"}], dtype=object)}, "pickled objects"),
    ],
)
def test_npz_that_does_not_fit(tmp_path, arrays, match):
    np.savez(tmp_path / "a.npz", **arrays)
    assert "a.npz" in fails(match, tmp_path / "a.npz", input_shape=(3, 8, 8))


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickles_in_an_npz_do_not_run(tmp_path):
    evil = np.empty(1, dtype=object)
    evil[0] = Evil(tmp_path / "ran")
    np.savez(tmp_path / "a.npz", images=numbered(5), labels=evil)
    fails("pickled objects", tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    fails("pickled objects", tmp_path / "b.npz")
    assert not (tmp_path / "ran").exists()


def test_corrupt_npz(tmp_path, npz):
    whole = npz.read_bytes()
    for content in (b"", whole[:1000], b"PK\x03\x04" + whole[4:-500], whole[:-30]):
        (tmp_path / "broken.npz").write_bytes(content)
        fails("broken.npz: ", tmp_path / "broken.npz")
    damaged = bytearray(whole)
    damaged[300:400] = bytes(100)
    (tmp_path / "broken.npz").write_bytes(bytes(damaged))
    fails("not a readable", tmp_path / "broken.npz")


def test_splits_of_a_folder_must_fit_each_other(tmp_path):
    np.savez(tmp_path / "train_0.npz", images=numbered(9), labels=np.arange(9) % 3)
    np.savez(tmp_path / "test.npz", images=numbered(9), labels=np.arange(9))
    load_data(tmp_path)  # the classes are the model's, and a few images may lack some
    np.savez(tmp_path / "test.npz", images=numbered(9))
    fails("both have labels", tmp_path)
    np.savez(tmp_path / "train_1.npz", images=numbered(9, size=4), labels=np.arange(9) % 3)
    fails(r"train_1.npz: must have images and labels like train_0", tmp_path)


def test_preprocessing_that_does_not_fit(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=numbered(6, size=16))
    steps = Preprocessing((0.5,) * 3, (0.5,) * 3, resize=16, crop=12)
    fails("12x12", path, preprocessing=steps, input_shape=(3, 16, 16))
    fails("one per channel", path, preprocessing=Preprocessing((0.5,) * 2, (0.5,) * 2))
    np.savez(path, images=RNG.normal(size=(6, 3, 8, 8)))
    fails(r"in \[0, 1\]", path, preprocessing=Preprocessing((0.5,) * 3, (0.5,) * 3))
    load_data(path, preprocessing=Preprocessing((0.0,), (1.0,)))


def test_numbers_that_cannot_be(npz):
    for name, value in (("resize", 0), ("resize", -8), ("crop", 0)):
        steps = Preprocessing((0.0,), (1.0,), **{name: value})
        fails(f"{name}: must be in 1..10,000 pixels, got {value}", npz, preprocessing=steps)
    fails("skip_bad: must be 0 or more, got -1", npz, skip_bad=-1)
    for seed in (-1, 2**63):
        fails(f"seed: must be .* got {seed}", npz, seed=seed)
    read_all(load_data(npz, seed=2**63 - 1))
