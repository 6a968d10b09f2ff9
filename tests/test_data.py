import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from factorize.errors import DataError
from factorize.io.data import load_data
from factorize.io.digits import DigitsNet, digits_data, load_digits_model
from factorize.io.preprocessing import Preprocessing
from factorize.measure.worth import measured_on

RNG = np.random.default_rng(0)


def numbered(count, channels=3, size=8):
    """Images that are told apart by their first pixel."""
    images = RNG.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    if size:
        images[:, 0, 0, 0] = np.arange(count) % 256
    return images


def ids(batches):
    return [round(float(v) * 255) for batch in batches for v in batch[0][:, 0, 0, 0]]


def save_images(folder, count, size=(8, 8), mode="RGB"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
        pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "all.npz"
    np.savez(path, images=numbered(200), labels=np.arange(200, dtype=np.uint8) % 4)
    return path


def test_splits_are_disjoint_complete_and_stable(npz):
    data = load_data(npz, seed=3, holdout=20, batch_size=5)
    train, held, test = map(ids, (data.train, data.holdout, data.test))
    assert len(held) == 20
    assert len(test) == 40
    assert sorted(train + held + test) == list(range(200))
    assert "200" in data.notes[0] or "160" in data.notes[0]
    again = load_data(npz, seed=3, holdout=20, batch_size=5)
    assert (ids(again.train), ids(again.holdout), ids(again.test)) == (train, held, test)
    other = load_data(npz, seed=4, holdout=20, batch_size=5)
    assert sorted(ids(other.holdout)) != sorted(held)


def test_holdout_is_at_most_a_fifth_of_train(npz):
    assert len(ids(load_data(npz, holdout=1000).holdout)) == 160 // 5


def test_train_is_shuffled_by_epoch_and_never_holds_out_images(npz):
    data = load_data(npz, holdout=20)
    first = ids(data.train)
    assert ids(data.train) == first
    assert first != sorted(first)
    held = set(ids(data.holdout))
    for epoch in (1, 2):
        data.train.sampler.set_epoch(epoch)
        order = ids(data.train)
        assert order != first
        assert not held & set(order)
    assert ids(data.test) == sorted(ids(data.test))


def test_reading_leaves_the_global_generator_alone(npz):
    data = load_data(npz)
    before = torch.get_rng_state()
    list(data.train)
    assert torch.equal(torch.get_rng_state(), before)


def test_labels_stay_with_their_images(npz):
    data = load_data(npz)
    assert data.labelled
    assert data.classes == 4
    for images, labels in (*data.train, *data.holdout, *data.test):
        assert labels.dtype == torch.int64
        assert [i % 4 for i in ids([(images,)])] == labels.tolist()


def test_folder_of_npz_uses_its_own_splits(tmp_path):
    images = numbered(60)
    for i in range(2):
        part = slice(20 * i, 20 * i + 20)
        np.savez(tmp_path / f"train_{i}.npz", images=images[part], labels=np.arange(20) % 3)
    np.savez(tmp_path / "val.npz", images=images[40:], labels=np.arange(20) % 3)
    data = load_data(tmp_path, holdout=4, batch_size=4)
    assert sorted(ids(data.train) + ids(data.holdout)) == list(range(40))
    assert ids(data.test) == list(range(40, 60))
    (tmp_path / "val.npz").unlink()
    data = load_data(tmp_path)
    assert data.test is None
    assert any("no test split" in note for note in data.notes)


def test_uint8_is_scaled_then_normalised(tmp_path):
    images = numbered(10)
    np.savez(tmp_path / "train.npz", images=images)
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    data = load_data(tmp_path, preprocessing=Preprocessing(mean, std))
    (batch,) = next(iter(data.holdout))
    match = images[:, None] / 255.0  # which image it is, by value
    want = (torch.from_numpy(match).float()[:, 0] - torch.tensor(mean)) / torch.tensor(std)
    gap = (want.permute(0, 3, 1, 2) - batch[:1]).abs().amax(dim=(1, 2, 3))
    assert gap.min() < 1e-5
    assert batch.dtype == torch.float32


@pytest.mark.parametrize("shape", [(6, 8, 8), (6, 8, 8, 1), (6, 1, 8, 8)])
def test_grey_stays_grey_or_becomes_rgb(tmp_path, shape):
    path = tmp_path / "a.npz"
    np.savez(path, images=RNG.random(shape).astype(np.float32))
    (grey,) = next(iter(load_data(path, input_shape=(1, 8, 8)).train))
    (rgb,) = next(iter(load_data(path, input_shape=(3, 8, 8)).train))
    assert grey.shape[1:] == (1, 8, 8)
    assert rgb.shape[1:] == (3, 8, 8)
    assert torch.equal(rgb[:, 0], rgb[:, 2])
    assert torch.equal(rgb[:, :1], grey)


def test_rgb_becomes_grey_for_a_grey_model(tmp_path):
    np.savez(tmp_path / "a.npz", images=numbered(6))
    (images,) = next(iter(load_data(tmp_path / "a.npz", input_shape=(1, 8, 8)).train))
    assert images.shape[1:] == (1, 8, 8)


def test_float_images_channels_first_or_last_are_the_same(tmp_path):
    images = RNG.random((10, 8, 8, 3)).astype(np.float32)
    np.savez(tmp_path / "last.npz", images=images)
    np.savez(tmp_path / "first.npz", images=images.transpose(0, 3, 1, 2))
    (last,), (first,) = (
        next(iter(load_data(tmp_path / name, input_shape=(3, 8, 8)).test))
        for name in ("last.npz", "first.npz")
    )
    assert torch.equal(last, first)


def test_other_sizes_are_resized_and_cropped_and_it_is_said(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=np.full((6, 10, 20, 3), 51, np.uint8))
    data = load_data(path, input_shape=(3, 16, 16))
    (images,) = next(iter(data.train))
    assert images.shape[1:] == (3, 16, 16)
    assert torch.allclose(images, torch.tensor(0.2))
    assert any("10x20" in note and "16x16" in note for note in data.notes)
    steps = Preprocessing((0.0,), (1.0,), resize=12, crop=8)
    (images,) = next(iter(load_data(path, preprocessing=steps).train))
    assert images.shape[1:] == (3, 8, 8)


def test_image_folder(tmp_path):
    for split, count in (("train", 8), ("val", 3)):
        for name in ("cat", "dog"):
            save_images(tmp_path / split / name, count)
    (tmp_path / "train" / "cat" / "._0.png").write_bytes(b"macOS leaves these")
    data = load_data(tmp_path, input_shape=(3, 8, 8), holdout=4)
    assert data.labelled
    assert data.classes == 2
    assert sum(len(b[0]) for b in data.holdout) == 16 // 5
    images, labels = next(iter(data.test))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    want = np.array(Image.open(tmp_path / "val" / "dog" / "2.png"))
    assert torch.equal(images[5], torch.from_numpy(want).permute(2, 0, 1) / 255)


def test_classes_are_numbered_by_the_training_split(tmp_path):
    for name in ("ant", "bee", "cow"):
        save_images(tmp_path / "train" / name, 3)
    save_images(tmp_path / "test" / "cow", 2)
    assert next(iter(load_data(tmp_path).test))[1].tolist() == [2, 2]


def test_workers_read_the_same(tmp_path):
    save_images(tmp_path / "train" / "a", 6)
    save_images(tmp_path / "train" / "b", 6)
    both = [load_data(tmp_path, workers=n, batch_size=4) for n in (0, 1)]
    for one, two in zip(*(list(data.train) for data in both), strict=True):
        assert all(map(torch.equal, one, two))


@pytest.mark.parametrize("nested", [False, True])
def test_folder_without_classes(tmp_path, nested):
    save_images(tmp_path / "train" if nested else tmp_path, 10, mode="L")
    data = load_data(tmp_path, input_shape=(1, 8, 8))
    assert not data.labelled
    assert data.test is None
    assert data.classes is None
    batch = next(iter(data.train))
    assert len(batch) == 1
    assert batch[0].shape == (8, 1, 8, 8)


def test_sixteen_bit_and_transparent_images_keep_their_values(tmp_path):
    Image.fromarray(np.full((8, 8), 65535 // 4, np.uint16)).save(tmp_path / "0.png")
    Image.fromarray(np.full((8, 8, 4), 51, np.uint8), "RGBA").save(tmp_path / "1.png")
    data = load_data(tmp_path, input_shape=(3, 8, 8))
    values = sorted(float(b[0].mean()) for b in (*data.train, *data.holdout))
    assert values == pytest.approx([0.2, 0.25], abs=1e-3)


def test_images_of_unequal_size_need_a_size(tmp_path):
    save_images(tmp_path, 5)
    save_images(tmp_path / "more", 5, size=(9, 8))
    for i in range(5):
        (tmp_path / "more" / f"{i}.png").rename(tmp_path / f"big{i}.png")
    (tmp_path / "more").rmdir()
    with pytest.raises(DataError, match=r"png: images of one batch .* --resize"):
        list(load_data(tmp_path).train)
    (images,) = next(iter(load_data(tmp_path, input_shape=(3, 8, 8)).train))
    assert images.shape[1:] == (3, 8, 8)


# --- functions -------------------------------------------------------------------------------

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

def images():
    return DataLoader(torch.zeros(9, 3, 4, 4), batch_size=3), None

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
        ("images", "must be a tuple"),
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


# --- errors ----------------------------------------------------------------------------------


def read_all(data):
    for split in (data.train, data.holdout, data.test or []):
        list(split)


def fails(match, *args, **kwargs):
    with pytest.raises(DataError, match=match) as caught:
        read_all(load_data(*args, **kwargs))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_path_and_wrong_kind(tmp_path):
    fails("does not exist", tmp_path / "nothing")
    (tmp_path / "a.csv").write_text("1,2")
    fails("another kind of file", tmp_path / "a.csv")


def test_folders_that_do_not_fit(tmp_path):
    fails("no image", tmp_path)
    save_images(tmp_path / "train" / "cat", 3)
    save_images(tmp_path / "train" / "dog", 3)
    save_images(tmp_path / "val" / "cow", 1)
    fails(r"val: must have the class folders.*cow", tmp_path)
    save_images(tmp_path / "test", 2)  # no classes: val is looked at
    fails(r"val: must have the class folders.*cow", tmp_path)
    (tmp_path / "train" / "dog" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "val" / "cow").rename(tmp_path / "val" / "cat")
    fails(r"dog.1\.png: not a readable image", tmp_path)


def test_images_beside_folders_are_not_dropped(tmp_path):
    save_images(tmp_path, 3)
    (tmp_path / "more").mkdir()
    fails(r"not both, got 3 images and the folders \['more'\]", tmp_path)
    for place in ("", "train", "val"):
        root = tmp_path / f"set_{place}"
        for split in ("train", "val"):
            save_images(root / split / "cat", 3)
        read_all(load_data(root))
        save_images(root / place, 2)
        fails("not both, got 2 images", root)


def test_truncated_image_names_the_file(tmp_path):
    save_images(tmp_path, 6, size=(64, 64))
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(whole[: len(whole) // 2])
    fails(r"3\.png: not a readable image", tmp_path)


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
    fails(r"test.npz: labels must be in 0\.\.2", tmp_path)
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
    for seed in (-1, 2**63):
        fails(f"seed: must be .* got {seed}", npz, seed=seed)
    read_all(load_data(npz, seed=2**63 - 1))


# --- the built-in example --------------------------------------------------------------------


def test_digits_are_split_once_and_for_all():
    one, two = digits_data(seed=0), digits_data(seed=1)
    assert len(list(one.test)) == 3
    for a, b in zip(one.test, two.test, strict=True):
        assert torch.equal(a[0], b[0])
    counts = [sum(len(b[0]) for b in split) for split in (one.holdout, one.test)]
    assert counts == [287, 360]
    seen = {x.numpy().tobytes() for split in (one.train, one.holdout) for b in split for x in b[0]}
    assert not seen & {x.numpy().tobytes() for b in one.test for x in b[0]}
    assert one.classes == 10
    assert max(float(b[0].max()) for b in one.test) == 1.0


def test_digits_model_is_trained():
    model = load_digits_model()
    assert isinstance(model, DigitsNet)
    assert not model.training
    with torch.no_grad():
        data = load_data("digits", input_shape=(1, 8, 8))
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in data.test)
    assert right / 360 >= 0.98


def test_digits_for_another_model():
    fails("1x8x8", "digits", input_shape=(3, 32, 32))
