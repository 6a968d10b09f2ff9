"""Random changes of training images, in whole batches on the model's device.

All is drawn on the CPU for the batch of all processes together: it does not depend on the device
nor on how many share the work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from factorize.errors import DataError
from factorize.tensor.call import batch_size

if TYPE_CHECKING:
    from factorize.tune.recipe import FinetuneConfig


def moved(images: Tensor, config: FinetuneConfig, size: int, own: slice) -> Tensor:
    """Mirror and shift each image by itself.

    Parameters
    ----------
    images
        (N, C, H, W): those of this process.
    size, own
        Of the whole batch, and which of it these are.

    Raises
    ------
    DataError
        If they are no images, or smaller than the shift.
    """
    if not (config.flip or config.crop):
        return images
    if _is_odd(images) or min(images.shape[2:]) <= config.crop:
        raise DataError(
            f"crop: images must be (C, H, W), larger than {config.crop} pixels, got "
            f"{_form(images)}. Leave flip and crop out of the recipe."
        )
    mirrored = (torch.rand(size) < 0.5)[own] if config.flip else torch.zeros(len(images)).bool()
    shifts = torch.randint(0, 2 * config.crop + 1, (size, 2))[own]
    mirrored, shifts = mirrored.to(images.device), shifts.to(images.device)
    height, width = images.shape[2:]
    columns = torch.arange(width, device=images.device).expand(len(images), -1)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns) + shifts[:, 1:]
    rows = torch.arange(height, device=images.device) + shifts[:, :1]
    padded = F.pad(images, (config.crop,) * 4, mode="reflect") if config.crop else images
    number = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return padded[number, channel, rows[:, None, :, None], columns[:, None, None, :]]


def mixed(images: Tensor, config: FinetuneConfig) -> tuple[Tensor, Tensor | None]:
    """Mix images of a batch with each other, by mixup or cutmix.

    Returns
    -------
    images
        (N, C, H, W).
    shares
        (N, N): how much of each image of the batch is in each; None where nothing was mixed.

    Raises
    ------
    DataError
        If they are no images.
    """
    from torchvision.transforms import v2

    size = batch_size(images)
    kinds = [v2.MixUp(alpha=config.mixup, num_classes=size)] if config.mixup else []
    kinds += [v2.CutMix(alpha=config.cutmix, num_classes=size)] if config.cutmix else []
    if not kinds:
        return images, None
    if _is_odd(images):
        raise DataError(
            f"mixup: images must be (C, H, W), got {_form(images)}. Leave mixup and "
            "cutmix out of the recipe."
        )
    # Each image a class of its own: the mixed labels then are the shares.
    return kinds[int(torch.randint(len(kinds), ()))](
        images, torch.arange(size, device=images.device)
    )


def _is_odd(images: Any) -> bool:
    return not isinstance(images, Tensor) or images.ndim != 4


def _form(images: Any) -> str:
    return str(tuple(images.shape[1:])) if isinstance(images, Tensor) else "several inputs"
