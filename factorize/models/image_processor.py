"""What a transformers image processor does, as far as our own preprocessing does it too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from factorize.system.imports import brief
from factorize.types import Preprocessing

_Read = tuple[tuple[int, ...] | None, Preprocessing | None, tuple[str, ...]]


def preprocessing_of(folder: Path, name: str, config: Any) -> _Read:
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
    import transformers

    try:
        # Some of the values are defaults of the processor's class, and not in the file.
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        return _read(processor.to_dict(), channels, own)
    except Exception as failure:
        return own, None, (f"its preprocessor_config.json cannot be used: {brief(failure)}",)


def _read(settings: Mapping[str, Any], channels: int, own: tuple[int, ...] | None) -> _Read:
    resize, crop, notes = _steps(settings)
    mean, std = (0.0,), (1.0,)
    if settings.get("do_normalize", True):
        mean, std = (_numbers(settings.get(key)) for key in ("image_mean", "image_std"))
    # x = ((255 p f - offset) - mean) / std of pixels p in 0..1, which ours begin with.
    white = 255 * settings.get("rescale_factor", 1 / 255)
    if not settings.get("do_rescale", True):
        white = 255.0
    offset = float(bool(settings.get("rescale_offset", False)))
    mean = tuple((one + offset) / white for one in mean)
    std = tuple(one / white for one in std)
    if settings.get("do_flip_channel_order"):
        notes += ("takes images as BGR, and files are read as RGB: use --data module:function",)
    side = crop or resize
    shape = (channels, side, side) if side else own
    return shape, Preprocessing(mean, std, resize, crop), notes


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


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(map(float, values)) if isinstance(values, (list, tuple)) else (float(values),)
