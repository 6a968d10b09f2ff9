"""Data: disjoint splits, arrays that become images, and the built-in example."""

import numpy as np
import pytest
import torch
from pictures import RNG, fails, ids, numbered, numbered_file

from factorize.data.digits import digits_data
from factorize.data.load_data import load_data
from factorize.models.digits import DigitsNet, load_digits_model
from factorize.types import Preprocessing


@pytest.fixture
def npz(tmp_path):
    return numbered_file(tmp_path / "all.npz")


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
    assert data.classes is None  # the numbers are the model's
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
