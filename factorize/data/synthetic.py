"""Data made up, where there is none of the user's: images, video or sound.

Calibrated on dead leaves, a net for photographs is fitted nearly as well as on real images, which
white or 1/f noise does not do (fractal images for pruning without data: Lazarevich 2021, arXiv
2104.15023). Nets that read signs are another matter: many leaves and drawings are made, and those
kept that the model's batch norms take for its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from factorize.data.drawings import drawings
from factorize.data.images import Loading, PixelSet, loader
from factorize.data.leaves import leaves
from factorize.data.sounds import sounds
from factorize.errors import DataError
from factorize.types import Data, Preprocessing

SYNTHETIC = "synthetic"  # the name of the data
COUNT = 1250  # a thousand to fit to, the rest held out; fewer where they are large
_VALUES, _LEAST_COUNT = 2e7, 200  # so many positions in all, in so many images at least
_BATCH_VALUES = 2e6  # positions in a batch: a layer of 64 channels holds half a gigabyte for them
_LEAVES, _DRAWINGS, _STROKED = 2, 16, 1e7  # for each that is kept; positions of drawings in all
_MOST_CHANNELS = 4  # of what is taken for images, video or sound unasked
_TOLD = (
    "no image of yours was seen, the net is fitted to made-up ones; --data FOLDER with a few "
    "hundred real ones, without labels, does better and tells what was lost"
)
_FOUND = "the range of the input was read off the batch norms; --mean and --std say it"
_UNKNOWN = (
    "the range of the input is not known: made-up images are in 0..1, made-up sound in -1..1; "
    "--mean and --std say it"
)


@dataclass(frozen=True)
class MadeUp:
    """The wish for made-up images: they are made when all that fails sooner was tried.

    Attributes
    ----------
    preprocessing
        What the model's images go through, where that is known.
    batch_size
        At most.
    """

    preprocessing: Preprocessing | None = None
    batch_size: int = 128


Suit = Callable[
    [Sequence[Tensor], Preprocessing | None, int], tuple[list[Tensor], Preprocessing] | None
]


def is_synthetic(source: Any) -> bool:
    """Whether made-up images are asked for by name."""
    return isinstance(source, str) and source == SYNTHETIC and not Path(source).exists()


def is_made_up_like(example_input: Any) -> bool:
    """Whether a model's input is a batch of what may be made up unasked."""
    return (
        isinstance(example_input, Tensor)
        and example_input.is_floating_point()
        and 3 <= example_input.ndim <= 5
        and 1 <= example_input.shape[1] <= _MOST_CHANNELS
    )


def synthetic_data(
    shape: Sequence[int],
    *,
    preprocessing: Preprocessing | None = None,
    suit: Suit | None = None,
    count: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
) -> Data:
    """Made-up inputs for a model, without labels; always the same for a seed.

    Parameters
    ----------
    shape
        Of one input: (C, H, W) for images, (C, D, H, W) for video, (C, L) for sound.
    preprocessing
        What the model's images go through. None: what `suit` finds, else pixels / 255. Sound is
        in -1..1.
    suit
        Chooses among many: those of each kind, the preprocessing where it is known, how many are
        wanted -> those to fit to and those to hold out, and the preprocessing. None, or where it
        gives None: leaves alone.
    count
        None: as many as chains are well fitted to.

    Raises
    ------
    DataError
        There is no such kind of input, or the preprocessing is for other channels.
    """
    if count is None:
        count = count_for(shape)
    if preprocessing is not None:
        preprocessing.check(shape[0], SYNTHETIC)
    notes, chosen = [_TOLD], None
    if suit is None:
        pixels = made_up(shape, count, seed)
    else:
        kinds = [pixels := made_up(shape, _LEAVES * count, seed)]
        if len(shape) == 3:
            drawn = min(_DRAWINGS * count, max(count, int(_STROKED / prod(shape[1:]))))
            kinds.append(drawings((shape[0], shape[1], shape[2]), drawn, seed))
        chosen = suit(kinds, preprocessing, count)
    if chosen is None:
        held = max(1, count // 5)
        chosen = [pixels[held:count], pixels[:held]], preprocessing
    elif preprocessing is None:
        notes.append(_FOUND)
    splits, steps = chosen
    if steps is None:
        steps = Preprocessing((0.0,), (1.0,))
        notes.append(_UNKNOWN)
    loading = Loading(min(batch_size, max(1, int(_BATCH_VALUES / prod(shape[1:])))), seed)
    fitted, holdout = (PixelSet(one, None, steps.normalise) for one in splits)
    return Data(
        train=loader(fitted, loading), holdout=loader(holdout, loading), labelled=False,
        source=SYNTHETIC, notes=tuple(notes), holdout_of="made-up images, no real ones",
        preprocessing=replace(steps, resize=None, crop=None), made_up=True,
    )  # fmt: skip


def count_for(shape: Sequence[int]) -> int:
    """How many made-up inputs of a shape (C, ...) chains are well fitted to."""
    return min(COUNT, max(_LEAST_COUNT, int(_VALUES / prod(shape[1:]))))


def made_up(shape: Sequence[int], count: int, seed: int = 0) -> Tensor:
    """(count, *shape): uint8 of 0..255 for images and video, float32 of -1..1 for sound.

    Raises
    ------
    DataError
        A shape has one to three sizes behind the channels.
    """
    if len(shape) == 2:
        return sounds((shape[0], shape[1]), count, seed)
    if len(shape) in (3, 4):
        return leaves(shape, count, seed)
    raise DataError(
        f"{SYNTHETIC}: inputs must be (C, L), (C, H, W) or (C, D, H, W), got {tuple(shape)}. Give "
        "data of your own with --data."
    )
