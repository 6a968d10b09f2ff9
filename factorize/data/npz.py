"""Images from ``.npz`` files: ``images`` and optionally ``labels``; never pickled objects."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from factorize.data.images import ImageSet, PixelSet, Transform, split
from factorize.errors import DataError
from factorize.system.archives import check_unpacked_size

_MOST_CLASSES = 10**7


def npz_file(path: Path, transform: Transform, seed: int) -> tuple[ImageSet, ImageSet, list[str]]:
    """Read one file and split it: 80 % to train, 20 % to test.

    Returns
    -------
    train, test, notes

    Raises
    ------
    DataError
        If it cannot be read or does not fit the model.
    """
    images, labels = _read(path, transform.channels)
    if len(images) < 3:
        raise DataError(
            f"{path}: to be split it needs at least 3 images, got {len(images)}. Add images."
        )
    parts = split(len(images), max(1, len(images) // 5), seed)
    train, test = (
        _image_set(images[rows], None if labels is None else labels[rows], transform, path)
        for rows in parts
    )
    note = f"{path.name} has no splits: {len(train)} images train, {len(test)} test (seed {seed})"
    return train, test, [note, *_resize_note(images, transform)]


def npz_folder(
    train_paths: Sequence[Path], test_path: Path | None, transform: Transform
) -> tuple[ImageSet, ImageSet | None, list[str]]:
    """Read ``train*.npz`` as one training split, and the test split if there is one.

    Returns
    -------
    train, test, notes

    Raises
    ------
    DataError
        If one cannot be read, or they do not fit each other or the model.
    """
    parts = [_read(path, transform.channels) for path in train_paths]
    images, labels = _joined(parts, train_paths)
    train = _image_set(images, labels, transform, train_paths[0].parent)
    notes = _resize_note(images, transform)
    if test_path is None:
        return train, None, notes
    test_images, test_labels = _read(test_path, transform.channels)
    if (labels is None) != (test_labels is None):
        raise DataError(
            f"{test_path}: training and test files must both have labels or both have none. "
            "Add the missing key 'labels'."
        )
    test = _image_set(test_images, test_labels, transform, test_path)
    return train, test, notes


def _read(path: Path, channels: int | None) -> tuple[np.ndarray, Tensor | None]:
    """Images (N, C, H, W), as a view where they are stored channels last, and labels (N,)."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile) or archive.zip is None:
                raise TypeError("a single array")
            check_unpacked_size(archive.zip, path, DataError)
            if "images" not in archive:
                raise DataError(
                    f"{path}: needs the key 'images', got {sorted(archive) or 'nothing'}. "
                    "Save it with np.savez(path, images=..., labels=...)."
                )
            images = archive["images"]
            labels = archive.get("labels")
    except DataError:
        raise
    # zipfile's RuntimeErrors: encrypted, or compressed in a way it does not know.
    except (ValueError, OSError, EOFError, TypeError, RuntimeError, MemoryError) as error:
        raise _unreadable(path, error) from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, error) from error
    images = _channels_first(images, channels, path)
    return images, None if labels is None else _labels(labels, len(images), path)


def _unreadable(path: Path, error: Exception) -> DataError:
    if "allow_pickle" in str(error):
        return DataError(
            f"{path}: must hold plain arrays, got pickled objects, which are never loaded. "
            "Save images as uint8 and labels as an integer array."
        )
    return DataError(f"{path}: not a readable .npz file ({type(error).__name__}). Save it anew.")


def _channels_first(images: np.ndarray, channels: int | None, path: Path) -> np.ndarray:
    if images.dtype == np.float64 or images.dtype == np.float16:
        images = images.astype(np.float32)
    if images.dtype not in (np.uint8, np.float32):
        raise DataError(f"{path}: images must be uint8 or float, got {images.dtype}. Convert them.")
    if images.ndim == 3 and images.size:
        return images[:, None]
    if images.ndim == 4 and images.size:
        known = (1, 3) if channels is None else (channels, 1, 3)
        for count in known:
            if images.shape[3] == count:
                return images.transpose(0, 3, 1, 2)
            if images.shape[1] == count:
                return images
    want = "1 or 3" if channels is None else f"{channels}, 1 or 3"
    raise DataError(
        f"{path}: images must be (N, H, W), (N, H, W, C) or (N, C, H, W) with N > 0, H > 0, W > 0 "
        f"and C = {want} channels, got {images.shape}. Reshape them, or correct --input-shape."
    )


def _labels(labels: np.ndarray, count: int, path: Path) -> Tensor:
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise DataError(
            f"{path}: labels must be integers of shape ({count},), one per image, got "
            f"{labels.dtype} of shape {labels.shape}. Give one class number per image."
        )
    if labels.min() < 0:
        raise DataError(
            f"{path}: labels must be 0 or more, got {labels.min()}. Number the classes from 0."
        )
    if labels.max() >= _MOST_CLASSES:
        raise DataError(
            f"{path}: labels must be below {_MOST_CLASSES:,}, got {labels.max()}. Number the "
            "classes from 0."
        )
    return torch.from_numpy(labels.astype(np.int64))


def _joined(
    parts: list[tuple[np.ndarray, Tensor | None]], paths: Sequence[Path]
) -> tuple[np.ndarray, Tensor | None]:
    first, first_labels = parts[0]
    for (images, labels), path in zip(parts, paths, strict=True):
        same = images.shape[1:] == first.shape[1:] and images.dtype == first.dtype
        if not same or (labels is None) != (first_labels is None):
            raise DataError(
                f"{path}: must have images and labels like {paths[0].name} (shape "
                f"{first.shape[1:]}, {first.dtype}), got {images.shape[1:]}, {images.dtype}, "
                f"{'no ' if labels is None else ''}labels. Save all training files alike."
            )
    labels = [labels for _, labels in parts if labels is not None]
    images = first if len(parts) == 1 else np.concatenate([images for images, _ in parts])
    return images, torch.cat(labels) if labels else None


def _image_set(
    images: np.ndarray, labels: Tensor | None, transform: Transform, path: Path
) -> ImageSet:
    steps = transform.preprocessing
    if (
        steps is not None
        and images.dtype == np.float32
        and (any(steps.mean) or set(steps.std) != {1})
    ):
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"{path}: float images must be in [0, 1] where --mean and --std are applied, got "
                f"{low:.3g}..{high:.3g}. Divide by 255, save uint8, or, if they are normalised "
                "already, pass --mean 0 --std 1."
            )
    prepare = partial(transform, place=str(path))
    found = PixelSet(torch.from_numpy(images), labels, prepare)
    found.read([0])  # whatever does not fit the model fails here, not in the middle of a run
    return found


def _resize_note(images: np.ndarray, transform: Transform) -> list[str]:
    if transform.resizes or transform.size in (None, images.shape[2:]):
        return []
    (h, w), (height, width) = images.shape[2:], transform.size
    return [f"images of {h}x{w} are resized and centre-cropped to {height}x{width}"]
