"""Dead leaves: shapes that cover one another, with the edges and occlusions of photographs.

Objects that cover one another are what white or 1/f noise lacks (Lee, Mumford and Huang 2001).
For video, the view of them moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_CANVAS = 512  # pixels; at least twice an image's longer side
_VIEWS = 64  # images that are views of one canvas
_LEAVES = 1500
_LEAST, _TAIL, _LARGEST = 1.5, 1.1, 160.0  # radii in pixels: a Pareto law
_ZOOM = 0.5, 2.0  # canvas pixels for one of an image, log-uniform; up to more in a small image,
_WIDE = 128.0  # whose shorter side may be a view of so many
_CONTRAST, _LIGHT = (0.5, 1.2), 40.0  # of a view
_COLOUR = 35.0  # channels about the grey level of a leaf, of 255
_SHADE = 25.0  # the most that it changes from its centre to its rim
_NOISE = 8.0  # standard deviation of the 1/f noise on top, at most
_PAN = 0.05  # of the shorter side, from frame to frame

Floats = NDArray[np.float32]


def leaves(shape: Sequence[int], count: int, seed: int = 0) -> Tensor:
    """(count, C, H, W) or, moving, (count, C, D, H, W): uint8."""
    rng = np.random.default_rng(seed)
    channels, height, width = shape[0], *shape[-2:]
    frames = shape[1] if len(shape) == 4 else 1
    side = max(_CANVAS, 2 * max(height, width))
    made = np.empty((count, channels, frames, height, width), np.uint8)
    for index, one in enumerate(made):
        if index % _VIEWS == 0:
            canvas = _canvas(rng, channels, side)
        _view(rng, canvas, one)
    return torch.from_numpy(made if len(shape) == 4 else made[:, :, 0])


def _canvas(rng: np.random.Generator, channels: int, side: int) -> Tensor:
    """(C, side, side) full of leaves, each upon those before."""
    canvas = np.empty((channels, side, side), np.float32)
    canvas[:] = _colour(rng, channels)
    for _ in range(_LEAVES * side**2 // _CANVAS**2):
        radius = min(_LEAST * (1 + rng.pareto(_TAIL)), _LARGEST)
        _Leaf(rng, radius, channels).paint(canvas, rng.uniform(0, side, 2))
    return torch.from_numpy(canvas)


def _view(rng: np.random.Generator, canvas: Tensor, made: NDArray[np.uint8]) -> None:
    """Fill one (C, T, H, W) with a part of a canvas, which moves from frame to frame."""
    frames, height, width = made.shape[1:]
    widest = max(_ZOOM[1], _WIDE / min(height, width))
    widest = min(widest, canvas.shape[1] / max(height, width))
    zoom = np.exp(rng.uniform(*np.log((_ZOOM[0], widest))))
    pan = rng.normal(0, _PAN, 2) * min(height, width)
    box = [max(round(zoom * n), 1) for n in (height, width)]
    start = [rng.integers(0, n - size + 1) for n, size in zip(canvas.shape[1:], box, strict=True)]
    turned = [axis for axis in (1, 2) if rng.integers(2)]
    contrast, light = rng.uniform(*_CONTRAST), rng.uniform(-_LIGHT, _LIGHT)
    noise = _noise(rng, height, width) * rng.uniform(0, _NOISE)
    for frame in range(frames):
        moved = zip(start, pan, box, canvas.shape[1:], strict=True)
        y, x = (int(np.clip(s + frame * p, 0, n - size)) for s, p, size, n in moved)
        part = canvas[:, y : y + box[0], x : x + box[1]].flip(turned)
        part = F.interpolate(part[None], (height, width), mode="bilinear", antialias=True)[0]
        pixels = 127.5 + contrast * (part.numpy() - 127.5) + light + noise
        made[:, frame] = np.clip(pixels, 0, 255)


class _Leaf:
    """An ellipse or a convex polygon, in one colour with a slant of light."""

    def __init__(self, rng: np.random.Generator, radius: float, channels: int) -> None:
        self.radius, corners = radius, int(rng.integers(2, 7))  # two: an ellipse
        turn = rng.uniform(0, 2 * pi)
        self.round = corners == 2
        angles = turn + (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * (2 * pi / corners)
        if self.round:
            angles = np.array([turn, turn + pi / 2])
        self.normals = np.stack([np.sin(angles), np.cos(angles)], 1).astype(np.float32)
        self.reach = (radius * rng.uniform(0.4, 1, corners)).astype(np.float32)
        self.colour = _colour(rng, channels)
        self.light = (rng.normal(size=2) * _SHADE / radius / 2).astype(np.float32)

    def paint(self, canvas: Floats, centre: NDArray[np.float64]) -> None:
        """Cover what of a (C, H, W) is within, half of what is at the edge."""
        box = self.radius * (1 if self.round else 2) + 1
        low = np.maximum(np.floor(centre - box), 0).astype(int)
        high = np.minimum(np.ceil(centre + box), canvas.shape[1:]).astype(int)
        if (low >= high).any():
            return
        y = np.arange(low[0], high[0], dtype=np.float32)[:, None] - np.float32(centre[0])
        x = np.arange(low[1], high[1], dtype=np.float32)[None] - np.float32(centre[1])
        sides = [n[0] * y + n[1] * x for n in self.normals]
        if self.round:
            far = np.hypot(sides[0] / self.reach[0], sides[1] / self.reach[1])
            outside = (far - 1) * self.reach.min()
        else:
            outside = np.max([s - r for s, r in zip(sides, self.reach, strict=True)], axis=0)
        cover = np.clip(0.5 - outside, 0, 1)
        part = canvas[:, low[0] : high[0], low[1] : high[1]]
        shade = np.clip(self.light[0] * y + self.light[1] * x, -_SHADE, _SHADE)
        part += cover * (self.colour + shade - part)


def _colour(rng: np.random.Generator, channels: int) -> Floats:
    """(C, 1, 1): a grey level, and channels about it where there are several."""
    level = rng.uniform(0, 255) + rng.uniform(-_COLOUR, _COLOUR, channels) * (channels > 1)
    return level.astype(np.float32)[:, None, None]


def _noise(rng: np.random.Generator, height: int, width: int) -> Floats:
    """(H, W): noise whose amplitude falls with the frequency, of variance 1."""
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    amplitude = 1 / np.maximum(np.hypot(y, x), 1 / max(height, width))
    white = rng.normal(size=(height, width))
    found = np.fft.irfft2(np.fft.rfft2(white) * amplitude, (height, width))
    return ((found - found.mean()) / max(found.std(), 1e-12)).astype(np.float32)
