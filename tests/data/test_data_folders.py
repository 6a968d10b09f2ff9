"""Folders of images: their splits and classes, and what does not fit."""

import numpy as np
import pytest
import torch
from pictures import fails, read_all, save_images
from PIL import Image

from factorize.data.load_data import load_data
from factorize.errors import DataError


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
    fails(r"dog.1\.png: not a readable image .* --skip-bad", tmp_path)


def test_a_class_may_lack_training_images(tmp_path):
    for name in ("ant", "bee", "cow"):
        save_images(tmp_path / "val" / name, 1)
    save_images(tmp_path / "train" / "ant", 3)
    save_images(tmp_path / "train" / "cow", 3)
    data = load_data(tmp_path)
    assert data.classes == 3
    assert next(iter(data.test))[1].tolist() == [0, 1, 2]
    assert {int(y) for b in (*data.train, *data.holdout) for y in b[1]} == {0, 2}


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_skipped_up_to_a_number(tmp_path, workers):
    for place in ("train/cat", "train/dog", "val/cat", "val/dog"):
        save_images(tmp_path / place, 6, size=(64, 64))
    for image in sorted((tmp_path / "train" / "cat").iterdir()):
        Image.open(image).save(image.with_suffix(".jpg"))
        image.unlink()
    cut = tmp_path / "train" / "cat" / "2.jpg"
    cut.write_bytes(cut.read_bytes()[:-900])  # its head is whole
    (tmp_path / "val" / "dog" / "1.png").write_bytes(b"no image")
    fails(r"not a readable image .* --skip-bad", tmp_path)
    fails(r"at most 1 images may be unreadable, got 2, the first train.cat.2\.jpg", tmp_path,
          skip_bad=1)  # fmt: skip
    data = load_data(tmp_path, skip_bad=2, workers=workers, input_shape=(3, 8, 8))
    assert len(data.train.dataset) + len(data.holdout.dataset) == 11
    read_all(data)
    assert [len(labels) for _, labels in data.test] == [11]
    (note,) = [note for note in data.notes if "skipped" in note]
    assert note.startswith("2 unreadable image(s) skipped: train")
    assert "2.jpg" in note
    assert "1.png" in note
    cut.unlink()
    (tmp_path / "val" / "dog" / "1.png").unlink()
    assert not any("skipped" in note for note in load_data(tmp_path, skip_bad=5).notes)


def test_of_many_unreadable_images_ten_are_named(tmp_path):
    save_images(tmp_path, 15)
    for image in sorted(tmp_path.iterdir())[:12]:
        image.write_bytes(b"")
    (note,) = [note for note in load_data(tmp_path, skip_bad=12).notes if "skipped" in note]
    assert note.count(".png") == 10
    assert note.endswith("and 2 more")


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


@pytest.mark.parametrize(("channels", "shape"), [(1, "1x20x20"), (3, "3x20x20")])
def test_images_have_the_channels_of_a_first_convolution_that_takes_one(
    command, tmp_path, channels, shape
):
    net = torch.nn.Sequential(torch.nn.Conv2d(channels, 16, 3), torch.nn.Conv2d(16, 16, 3))
    torch.save(net, tmp_path / "net.pt")
    save_images(tmp_path / "photos", 5, (20, 20), "L")
    ran = command("net.pt", "--rank", "4", "--data", "photos", "--dry-run")
    assert ran.code == 0, ran.err
    assert f"input {shape}" in ran.out
