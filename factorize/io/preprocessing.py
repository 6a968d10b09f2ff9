"""How an image becomes a model's input."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side, crop the centre, scale to 0..1, then ``(x - mean) / std``.

    Attributes
    ----------
    mean, std
        One number per channel, in the scale where white is 1.
    resize
        Length of the shorter side in pixels; None keeps the size.
    crop
        Side of the central square in pixels; None keeps all.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    crop: int | None = None
