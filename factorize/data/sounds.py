"""Sounds made up: tones with harmonics that glide, begin and fade, over coloured noise."""

from __future__ import annotations

from math import pi

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def sounds(shape: tuple[int, int], count: int, seed: int = 0) -> Tensor:
    """(count, C, L): float32 in -1..1."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([_sound(rng, *shape) for _ in range(count)]))


def _sound(rng: np.random.Generator, channels: int, length: int) -> NDArray[np.float32]:
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
