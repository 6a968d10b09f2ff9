"""Images from folders: ImageFolder layout with one folder per class, or a flat folder."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from factorize.data.images import ImageSet, Transform
from factorize.errors import DataError

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"))

_MOST_NAMED = 10  # unreadable images in a note


def image_folder(
    path: Path, transform: Transform, *, skip_bad: int = 0, workers: int = 0
) -> tuple[ImageSet, ImageSet | None, int | None, list[str]]:
    """Read ``train/`` with ``test/`` or ``val/`` beside it, or images that lie flat in ``path``.

    ``test/`` is preferred over ``val/`` unless the training images have classes and it has none.
    Classes are numbered in alphabetical order.

    Parameters
    ----------
    skip_bad, workers
        How many images may be unreadable, and processes that look for them.

    Returns
    -------
    train, test, classes, notes

    Raises
    ------
    DataError
        If there is no image, images lie beside folders, the splits do not have the same classes,
        or too many images are unreadable.
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
    notes = [] if classes else [f"{root.name}/ has no class folders: images without labels"]
    if transform.size and not transform.resizes:
        height, width = transform.size
        notes.append(f"images of another size are resized and centre-cropped to {height}x{width}")
    splits = [path / name for name in ("test", "val") if root != path and (path / name).is_dir()]
    if classes:
        splits = [p for p in splits if _folders(p)] or splits
    if len(splits) > 1:
        notes.append(f"test images are those of {splits[0].name}/, not of {splits[1].name}/")
    if splits:
        found = _folders(splits[0])
        strange, missing = sorted({*found} - {*classes})[:5], {*classes} - {*found}
        if bool(found) != bool(classes) or (strange and missing):
            raise DataError(
                f"{splits[0]}: must have the class folders of {root} ({len(classes)}: "
                f"{classes[:5]} ...), got {strange or 'no class folders'}. Name the classes alike "
                "in both."
            )
        classes = sorted({*classes, *found})  # some of them may lack training images
    roots = [root, *splits[:1]]
    listed = [_listed(place, classes) for place in roots]
    if skip_bad:
        bad = _unreadable([image for images in listed for image, _ in images], workers)
        if len(bad) > skip_bad:
            raise DataError(
                f"{path}: at most {skip_bad} images may be unreadable, got {len(bad)}, the first "
                f"{bad[0].relative_to(path)}. Replace or remove them, or raise --skip-bad."
            )
        listed = [[one for one in images if one[0] not in bad] for images in listed]
        if bad:
            notes.append(_named(bad, path))
    sets = [
        _image_set(images, place, bool(classes), transform)
        for images, place in zip(listed, roots, strict=True)
    ]
    return sets[0], sets[1] if splits else None, len(classes) or None, notes


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


def _listed(root: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Each image with the number of its class."""
    if not classes:
        return [(image, 0) for image in _images(root)]
    return [
        (image, number)
        for number, name in enumerate(classes)
        for image in _images(root / name, "**/*")
    ]


def _unreadable(paths: list[Path], workers: int) -> list[Path]:
    """Those that cannot be decoded, JPEG at an eighth of its size, which is quick."""
    batches: Any = DataLoader(
        paths,  # pyright: ignore[reportArgumentType]
        batch_size=64,
        num_workers=workers,
        collate_fn=_bad,
        generator=torch.Generator(),  # leaves the global one alone
    )
    return [path for bad in batches for path in bad]


def _bad(paths: list[Path]) -> list[Path]:
    bad = []
    for path in paths:
        try:
            _decode(path, grey=True, quick=True)
        except DataError:
            bad.append(path)
    return bad


def _named(bad: list[Path], root: Path) -> str:
    names = ", ".join(str(path.relative_to(root)) for path in bad[:_MOST_NAMED])
    more = f" and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else ""
    return f"{len(bad)} unreadable image(s) skipped: {names}{more}"


def _image_set(
    listed: list[tuple[Path, int]], root: Path, labelled: bool, transform: Transform
) -> ImageSet:
    if not listed:
        raise DataError(
            f"{root}: needs images ({', '.join(sorted(EXTENSIONS))}), got none. "
            "Put them there, in one folder per class where they have labels."
        )
    paths = [path for path, _ in listed]
    labels = torch.tensor([number for _, number in listed]) if labelled else None
    images = ImageSet(partial(_read, paths, transform), len(paths), labels)
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


def _decode(path: Path, grey: bool, quick: bool = False) -> Tensor:
    """Read (1 or 3, H, W): uint8, or float in [0, 1] where a file has 16 bits."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if quick:
                    image.draft("L", (1, 1))
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
            f"{path}: not a readable image ({type(error).__name__}). Replace or remove the file, "
            "or pass --skip-bad."
        ) from error
    return torch.from_numpy(array).view(*array.shape[:2], -1).permute(2, 0, 1)
