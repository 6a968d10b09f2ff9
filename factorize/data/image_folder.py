"""Images from folders: ImageFolder layout with one folder per class, or a flat folder."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from factorize.data.images import ImageSet, Transform
from factorize.errors import DataError

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"))


def image_folder(
    path: Path, transform: Transform
) -> tuple[ImageSet, ImageSet | None, int | None, list[str]]:
    """Read ``train/`` with ``test/`` or ``val/`` beside it, or images that lie flat in ``path``.

    ``test/`` is preferred over ``val/`` unless the training images have classes and it has none.

    Returns
    -------
    train, test, classes, notes

    Raises
    ------
    DataError
        If there is no image, images lie beside folders, or the splits do not have the same
        classes.
    """
    root = path / "train"
    if not root.is_dir():
        root = path
        if not _images(path):
            folders = sorted(p.name for p in path.iterdir() if p.is_dir())[:5]
            raise DataError(
                f"{path}: must hold train/ (with one folder per class, or with images) and "
                f"val/ or test/, or images, or train*.npz; got folders {folders} and no image. "
                "Arrange it so."
            )
    _folders(path)
    classes = _folders(root)
    train = _image_set(root, classes, transform)
    notes = [] if classes else [f"{root.name}/ has no class folders: images without labels"]
    if transform.size and not transform.resizes:
        height, width = transform.size
        notes.append(f"images of another size are resized and centre-cropped to {height}x{width}")
    splits = [path / name for name in ("test", "val") if root != path and (path / name).is_dir()]
    if classes:
        splits = [p for p in splits if _folders(p)] or splits
    if not splits:
        return train, None, len(classes) or None, notes
    if len(splits) > 1:
        notes.append(f"test images are those of {splits[0].name}/, not of {splits[1].name}/")
    found = _folders(splits[0])
    if bool(found) != bool(classes) or set(found) - set(classes):
        strange = sorted(set(found) - set(classes))[:5] or "no class folders"
        raise DataError(
            f"{splits[0]}: must have the class folders of {root} ({len(classes)}: "
            f"{classes[:5]} ...), got {strange}. Name the classes alike in both."
        )
    return train, _image_set(splits[0], classes, transform), len(classes) or None, notes


def _folders(root: Path) -> list[str]:
    """Names of the class or split folders; there are none beside images."""
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    images = _images(root) if names else []
    if images:
        raise DataError(
            f"{root}: must hold images or folders, not both, got {len(images)} images and the "
            f"folders {names[:5]}. Move one of them away."
        )
    return names


def _images(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(
        p
        for p in folder.glob(pattern)
        if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".") and p.is_file()
    )


def _image_set(root: Path, classes: list[str], transform: Transform) -> ImageSet:
    """Classes are numbered as given: those of the training split, in alphabetical order."""
    paths, labels = _images(root), None
    if classes:
        paths, labels = [], []
        for number, name in enumerate(classes):
            found = _images(root / name, "**/*")
            paths += found
            labels += [number] * len(found)
    if not paths:
        raise DataError(
            f"{root}: needs images ({', '.join(sorted(EXTENSIONS))}), got none. "
            "Put them there, in one folder per class where they have labels."
        )
    images = ImageSet(
        partial(_read, paths, transform),
        len(paths),
        None if labels is None else torch.tensor(labels),
    )
    images.read([0])  # whatever does not fit the model fails here, not in the middle of a run
    return images


def _read(paths: list[Path], transform: Transform, indices: Sequence[int]) -> Tensor:
    grey = transform.channels == 1
    images = [transform(_decode(paths[i], grey), str(paths[i])) for i in indices]
    for i, image in zip(indices, images, strict=True):
        if image.shape != images[0].shape:
            sizes = [f"{h}x{w}" for h, w in (image.shape[1:], images[0].shape[1:])]
            raise DataError(
                f"{paths[i]}: images of one batch must have one size, got {sizes[0]} beside "
                f"{sizes[1]}. Pass --resize and --crop, or --input-shape."
            )
    return torch.stack(images)


def _decode(path: Path, grey: bool) -> Tensor:
    """Read (1 or 3, H, W): uint8, or float in [0, 1] where a file has 16 bits."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.mode.startswith("I;16") or image.mode == "I":
                    deep = torch.from_numpy(np.asarray(image).astype(np.float32) / 65535)
                    return deep.expand(1 if grey else 3, *deep.shape)
                if image.mode == "F":
                    raise ValueError("no known scale")
                if "transparency" in image.info:
                    image = image.convert("RGBA")
                array = np.array(image.convert("L" if grey else "RGB"))
    except (
        OSError,
        SyntaxError,
        ValueError,
        MemoryError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise DataError(
            f"{path}: not a readable image ({type(error).__name__}). Replace or remove the file."
        ) from error
    return torch.from_numpy(array).view(*array.shape[:2], -1).permute(2, 0, 1)
