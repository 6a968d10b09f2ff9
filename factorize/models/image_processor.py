"""What a transformers image processor does, as far as our own preprocessing does it too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from factorize.system.imports import brief, import_extra
from factorize.types import Preprocessing

_Read = tuple[tuple[int, ...] | None, Preprocessing | None, tuple[str, ...]]


def preprocessing_of(folder: Path, config: Any) -> _Read:
    """Input (C, H, W), preprocessing, and what to tell of it.

    Parameters
    ----------
    config
        The model's own, which has the channels, and of some the size.
    """
    channels = getattr(config, "num_channels", 3)
    height, width = _sides(getattr(config, "image_size", None))
    own = (channels, height, width) if height and width else None
    if not (folder / "preprocessor_config.json").is_file():
        return own, None, ("no preprocessor_config.json: give --mean and --std with --data",)
    transformers = import_extra("transformers", str(folder), extra="hf")
    try:
        # Some of the values are defaults of the processor's class, and not in the file.
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        mean, std, flipped = _affine(processor, channels)
    except Exception as failure:
        return own, None, (f"its preprocessor_config.json cannot be used: {brief(failure)}",)
    resize, crop, notes = _steps(processor.to_dict())
    if flipped:
        notes += ("takes images as BGR, and files are read as RGB: use --data module:function",)
    side = crop or resize
    shape = (channels, side, side) if side else own
    return shape, Preprocessing(mean, std, resize, crop), notes


def _affine(processor: Any, channels: int) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Mean and std as it applies them, read off a black, a white and a red image; whether BGR.

    Each class has steps of its own: a factor, an offset, a second normalisation.
    """
    images = torch.zeros(3, channels, 32, 32, dtype=torch.uint8)
    images[1], images[2, 0] = 255, 255
    given = processor(list(images), do_resize=False, do_center_crop=False, return_tensors="pt")
    black, white, red = given["pixel_values"][..., 0, 0].double()  # (C) each
    std = 1 / (white - black)
    mean, std = (tuple(float(f"{v:.7g}") for v in one.tolist()) for one in (-black * std, std))
    return mean, std, bool(red[0] != white[0])


def _steps(settings: Mapping[str, Any]) -> tuple[int | None, int | None, tuple[str, ...]]:
    """The shorter side, the central square, and what differs in the original."""
    size = settings.get("size") if settings.get("do_resize", True) else None
    crop = settings.get("crop_size") if settings.get("do_center_crop") else None
    high, wide = _sides(crop)
    cropped = high if high == wide else None
    if isinstance(size, Mapping) and size.get("shortest_edge"):
        short = int(size["shortest_edge"])
        if (share := settings.get("crop_pct")) and not cropped:  # ConvNeXt's
            if short < 384:
                return int(short / share), short, ()
            return short, short, _squashed(short, short)
        return short, cropped, ()
    high, wide = _sides(size)
    if not high or high != wide:
        return None, cropped, _squashed(high, wide) if high else ()
    if cropped:
        return high, cropped, _squashed(high, wide)
    return high, high, _squashed(high, wide)


def _squashed(height: int | None, width: int | None) -> tuple[str, ...]:
    return (
        f"the original's processor squashes images to {height}x{width}: here the shorter side is "
        "resized and the centre cropped",
    )


def _sides(size: Any) -> tuple[int | None, int | None]:
    """Height and width of a number, a pair, or a mapping."""
    if isinstance(size, Mapping):
        return size.get("height"), size.get("width")
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return size[0], size[1]
    return (size, size) if isinstance(size, int) else (None, None)
