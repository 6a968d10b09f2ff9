"""What pixels go through before a model sees them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from factorize.errors import DataError


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

    def check(self, channels: int, place: str) -> None:
        """Raise DataError where mean or std are of another number of channels."""
        if {len(self.mean), len(self.std)} - {1, channels}:
            raise DataError(
                f"{place}: --mean and --std must have 1 value or one per channel ({channels}), "
                f"got {len(self.mean)} and {len(self.std)}."
            )

    def normalise(self, images: Tensor) -> Tensor:
        """(N, C, ...) in 0..1, or uint8, to the model's input."""
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        mean, std = self._beside(pixels)
        return (pixels - mean) / std

    def pixels(self, inputs: Tensor) -> Tensor:
        """What `normalise` makes such inputs (N, C, ...) of: 0..1, and what is beyond."""
        mean, std = self._beside(inputs)
        return inputs * std + mean

    def _beside(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std, each (C or 1, 1, ...)."""
        shape = -1, *[1] * (images.ndim - 2)
        mean, std = (
            torch.tensor(one, device=images.device).view(shape) for one in (self.mean, self.std)
        )
        return mean, std
