"""Drawings: a few strokes on a plain ground, as digits, letters and signs are made."""

from __future__ import annotations

from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LEAST = 24  # pixels that the shorter side is drawn at, and then reduced
_STROKES, _POINTS = (1, 5), 24  # each a parabola through three points
_THICK, _SPREAD = (0.03, 0.12), (0.15, 0.4)  # of the shorter side; the points' deviation
_OFF_CENTRE, _TINT = 0.08, 0.1
_PLAIN = 0.6  # how many have a white or black ground, and how many the opposite ink

Floats = NDArray[np.float32]


def drawings(shape: tuple[int, int, int], count: int, seed: int = 0) -> Tensor:
    """(count, C, H, W): uint8."""
    rng = np.random.default_rng(seed)
    channels, height, width = shape
    finer = max(1, ceil(_LEAST / min(height, width)))
    made = np.empty((count, *shape), np.uint8)
    for one in made:
        cover = _strokes(rng, height * finer, width * finer)
        cover = cover.reshape(height, finer, width, finer).mean((1, 3))
        level = rng.uniform()
        ground = round(level) if rng.uniform() < _PLAIN else level
        tint = rng.uniform(-_TINT, _TINT, (channels, 1, 1)) * (channels > 1)
        opposite = rng.uniform() < _PLAIN
        ink = np.full((channels, 1, 1), 1 - ground) if opposite else rng.uniform(size=tint.shape)
        pixels = (ground + tint) * (1 - cover) + ink * cover
        one[:] = np.clip(255 * pixels, 0, 255).round()
    return torch.from_numpy(made)


def _strokes(rng: np.random.Generator, height: int, width: int) -> Floats:
    """(H, W) in 0..1: how much of each pixel a few strokes cover; each begins where one ends."""
    side = min(height, width)
    y = np.arange(height, dtype=np.float32)[None, :, None]
    x = np.arange(width, dtype=np.float32)[None, None]
    thick, spread = side * rng.uniform(*_THICK), side * rng.uniform(*_SPREAD)
    centre = np.array([height, width]) / 2 + rng.normal(0, _OFF_CENTRE, 2) * side
    start, along = centre + rng.normal(0, spread, 2), np.linspace(0, 1, _POINTS)[:, None]
    nearest = np.full((height, width), np.inf, np.float32)
    for _ in range(rng.integers(*_STROKES)):
        by, end = centre + rng.normal(0, spread, (2, 2))
        points = (1 - along) ** 2 * start + 2 * along * (1 - along) * by + along**2 * end
        py, px = points.astype(np.float32).T[:, :, None, None]
        nearest = np.minimum(nearest, np.hypot(y - py, x - px).min(0))
        start = end
    return np.clip(thick - nearest + 0.5, 0, 1)
