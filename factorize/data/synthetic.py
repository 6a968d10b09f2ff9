"""Images made up: dead leaves, which have the edges and occlusions of photographs.

Calibrated on them, a net is fitted nearly as well as on real images, which white or 1/f noise does
not do: objects that cover one another are what carries it (Lee, Mumford and Huang 2001; fractal
images for pruning without data: Lazarevich 2021, arXiv 2104.15023). Nets for sound get sums of
harmonics and noise with attacks, nets for video leaves that move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import pi

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from factorize.data.images import Loading, PixelSet, build
from factorize.errors import DataError
from factorize.types import Data, Preprocessing

SYNTHETIC = "synthetic"  # the name of the data
COUNT = 1250  # a thousand to fit to, the rest held out
_LOOKED_AT = 256  # to find their range
_TOLD = (
    "no image of yours was seen: the net was fitted to made-up ones. --data FOLDER with a few "
    "hundred real ones, without labels, does better and tells what was lost"
)
_FOUND = "the range of the input was read off the first batch norm; --mean and --std say it"
_UNKNOWN = (
    "the range of the input is not known: made-up images are in 0..1, made-up sound in -1..1; "
    "--mean and --std say it"
)

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


def synthetic_data(
    shape: Sequence[int],
    *,
    preprocessing: Preprocessing | None = None,
    range_of: Callable[[Tensor], Preprocessing | None] | None = None,
    count: int = COUNT,
    batch_size: int = 128,
    seed: int = 0,
) -> Data:
    """Made-up inputs for a model, without labels; always the same for a seed.

    Parameters
    ----------
    shape
        Of one input: (C, H, W) for images, (C, D, H, W) for video, (C, L) for sound.
    preprocessing
        What the model's images go through. None: what `range_of` tells from some of the images in
        0..1, else pixels / 255. Sound is in -1..1.

    Raises
    ------
    DataError
        There is no such kind of input, or the preprocessing is for other channels.
    """
    pixels, notes = made_up(shape, count, seed), [_TOLD]
    if preprocessing is None and range_of is not None:
        preprocessing = range_of(_scaled(pixels[:_LOOKED_AT]))
        notes.append(_FOUND if preprocessing else _UNKNOWN)
    steps = preprocessing or Preprocessing((0.0,), (1.0,))
    if {len(steps.mean), len(steps.std)} - {1, shape[0]}:
        raise DataError(
            f"{SYNTHETIC}: --mean and --std must have 1 value or one per channel ({shape[0]}), got "
            f"{len(steps.mean)} and {len(steps.std)}."
        )
    mean, std = (
        torch.tensor(values).view(-1, *[1] * (len(shape) - 1)) for values in (steps.mean, steps.std)
    )

    def prepare(rows: Tensor) -> Tensor:
        images = _scaled(rows)
        return (images - mean.to(images.device)) / std.to(images.device)

    data = build(
        PixelSet(pixels, None, prepare), None, Loading(batch_size, seed), classes=None,
        source=SYNTHETIC,
    )  # fmt: skip
    return replace(
        data, preprocessing=replace(steps, resize=None, crop=None), notes=tuple(notes),
        holdout_of="made-up images, no real ones",
    )  # fmt: skip


def _scaled(rows: Tensor) -> Tensor:
    return rows.float() / 255 if rows.dtype == torch.uint8 else rows


def made_up(shape: Sequence[int], count: int, seed: int = 0) -> Tensor:
    """(count, *shape): uint8 of 0..255 for images and video, float32 of -1..1 for sound.

    Raises
    ------
    DataError
        A shape has one to three sizes behind the channels.
    """
    rng = np.random.default_rng(seed)
    if len(shape) == 2:
        return torch.from_numpy(np.stack([_sound(rng, *shape) for _ in range(count)]))
    if len(shape) not in (3, 4):
        raise DataError(
            f"{SYNTHETIC}: inputs must be (C, L), (C, H, W) or (C, D, H, W), got "
            f"{tuple(shape)}. Give data of your own with --data."
        )
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


def _sound(rng: np.random.Generator, channels: int, length: int) -> Floats:
    """(C, L): tones with harmonics that glide, begin and fade, over coloured noise."""
    time = np.arange(length) / length
    made = np.zeros((channels, length))
    for _ in range(rng.integers(1, 6)):
        cycles = length * 10 ** rng.uniform(-3, -0.5)  # within the length; up to a third of Nyquist
        phase = 2 * pi * cycles * (time + rng.normal(0, 0.1) * time**2)
        tone = sum(
            rng.normal() / h * np.sin(h * phase + rng.uniform(0, 2 * pi)) for h in range(1, 9)
        )
        since = time - rng.uniform(-0.5, 0.9)
        envelope = np.exp(-np.maximum(since, 0) * rng.exponential(8)) * (since > 0)
        made += rng.normal(1, 0.3, (channels, 1)) * tone * envelope
    frequency = np.maximum(np.fft.rfftfreq(length), 1 / length)
    spectrum = np.fft.rfft(rng.normal(size=(channels, length))) / frequency ** rng.uniform(0, 1)
    noise = np.fft.irfft(spectrum, length)
    made += noise / noise.std() * 10 ** rng.uniform(-3, 0)
    return (made / np.abs(made).max() * rng.uniform(0.1, 1)).astype(np.float32)
