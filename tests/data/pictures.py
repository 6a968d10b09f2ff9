"""What the tests of data share: images that are told apart, and how data is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from factorize.data.load_data import load_data
from factorize.errors import DataError
from factorize.types import Data

RNG = np.random.default_rng(0)


def numbered(count: int, channels: int = 3, size: int = 8) -> np.ndarray:
    """Images that are told apart by their first pixel."""
    images = RNG.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    if size:
        images[:, 0, 0, 0] = np.arange(count) % 256
    return images


def numbered_file(path: Path) -> Path:
    np.savez(path, images=numbered(200), labels=np.arange(200, dtype=np.uint8) % 4)
    return path


def ids(batches: Any) -> list[int]:
    return [round(float(v) * 255) for batch in batches for v in batch[0][:, 0, 0, 0]]


def save_images(
    folder: Path, count: int, size: tuple[int, int] = (8, 8), mode: str = "RGB"
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
        pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def read_all(data: Data) -> None:
    for split in (data.train, data.holdout, data.test or []):
        list(split)


def fails(match: str, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(DataError, match=match) as caught:
        read_all(load_data(*args, **kwargs))
    assert "\n" not in str(caught.value)
    return str(caught.value)
