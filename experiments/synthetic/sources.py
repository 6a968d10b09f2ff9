"""Images that chains are fitted to beside the library's own: worse ones, each without something."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from factorize.data import leaves
from factorize.types import Data

GREY = 127.5


def split(images: Tensor, batch: int = 125) -> Data:
    """A fifth held out."""
    fitted, held = images.split([len(images) - len(images) // 5, len(images) // 5])
    return Data([(b,) for b in fitted.split(batch)], [(b,) for b in held.split(batch)],
                labelled=False)  # fmt: skip


class _Disc(leaves._Leaf):
    """All of one shape."""

    def __init__(self, rng: np.random.Generator, radius: float, channels: int) -> None:
        super().__init__(rng, radius, channels)
        self.round, self.normals = True, np.eye(2, dtype=np.float32)
        self.reach = np.full(2, self.reach[0])


class _Sheer(leaves._Leaf):
    """Hides nothing: what it differs from grey by is added to what is there."""

    def paint(self, canvas: leaves.Floats, centre: Any) -> None:
        box = 2 * self.radius + 1
        low = np.maximum(np.floor(centre - box), 0).astype(int)
        high = np.minimum(np.ceil(centre + box), canvas.shape[1:]).astype(int)
        part = canvas[:, low[0] : high[0], low[1] : high[1]]
        own = np.full_like(part, GREY)
        super().paint(own, centre - low)
        part += own - GREY


def _evened(make: Any) -> Any:
    """Canvases of the mean and deviation that covering leaves have, whatever was added up."""

    def canvas(rng: np.random.Generator, channels: int, side: int) -> Tensor:
        made = make(rng, channels, side)
        deviation = (255**2 / 12 + leaves._COLOUR**2 / 3 * (channels > 1)) ** 0.5
        return (made - made.mean()) / made.std() * deviation + GREY

    return canvas


@contextmanager
def without(what: str) -> Iterator[None]:
    """Leaves are made without it: `shapes` (discs only), `occlusion` or `noise`."""
    module = "factorize.data.leaves"
    if what == "noise":
        with patch(f"{module}._NOISE", 0.0):
            yield
    elif what == "shapes":
        with patch(f"{module}._Leaf", _Disc):
            yield
    else:
        with patch(f"{module}._Leaf", _Sheer), patch(f"{module}._canvas", _evened(leaves._canvas)):
            yield


def gaussian(images: Tensor) -> Tensor:
    """Normal images of the same mean and covariance of all pixels."""
    rows = images.flatten(1).double()
    _, values, right = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    draw = torch.randn(len(rows), len(values), generator=torch.Generator().manual_seed(0)).double()
    made = draw * values / (len(rows) - 1) ** 0.5 @ right + rows.mean(0)
    return made.float().view_as(images)


def photographs() -> Tensor:
    """(1250, 3, 32, 32) crops of scikit-learn's two sample pictures, at several scales."""
    from sklearn.datasets import load_sample_images

    draw = torch.Generator().manual_seed(0)
    pictures = [
        torch.from_numpy(picture).movedim(2, 0).float() / 255
        for picture in load_sample_images().images
    ]
    made = []
    for number in range(1250):
        picture = pictures[number % 2]
        side = int(32 * 2 ** float(3 * torch.rand(1, generator=draw)))
        y, x = (int(torch.randint(n - side + 1, (1,), generator=draw)) for n in picture.shape[1:])
        part = picture[None, :, y : y + side, x : x + side]
        made.append(nn.functional.interpolate(part, (32, 32), mode="bilinear", antialias=True)[0])
    return torch.stack(made)
