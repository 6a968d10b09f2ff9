"""What every source of images shares: pixels to model input, the dataset, the splits, the loaders.

A split's use is fixed: ``holdout`` is taken off the training split and never trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from factorize.errors import DataError
from factorize.tensor.call import forward_batch
from factorize.types import Batch, Data, Preprocessing

NO_TEST = "no test split: nothing can be reported on test images"


@dataclass(frozen=True)
class Transform:
    """Pixels as stored -> float32 input of the model.

    Attributes
    ----------
    channels
        1 for grey, 3 for RGB, other numbers as stored; None keeps what is there.
    size
        (H, W) the model takes; images of another size are resized to cover it and centre-cropped,
        unless the preprocessing says how.
    """

    preprocessing: Preprocessing | None
    channels: int | None
    size: tuple[int, int] | None

    @classmethod
    def of(
        cls, preprocessing: Preprocessing | None, input_shape: tuple[int, ...] | None
    ) -> Transform:
        """Make the transform that fits the model's input (C, H, W) or (C,), where it is known."""
        if input_shape is None:
            return cls(preprocessing, None, None)
        channels, *size = input_shape
        return cls(preprocessing, channels, (size[0], size[1]) if size else None)

    @property
    def resizes(self) -> bool:
        """Whether the preprocessing itself says how images come to size."""
        steps = self.preprocessing
        return steps is not None and (steps.resize, steps.crop) != (None, None)

    def __call__(self, pixels: Tensor, place: str) -> Tensor:
        """Convert (..., C, H, W), uint8 or float in [0, 1], to float32 (..., C', H', W').

        Raises
        ------
        DataError
            Where channels or size do not fit the model; ``place`` says where.
        """
        pixels = self._sized(self._channels(pixels, place))
        if self.size and tuple(pixels.shape[-2:]) != self.size:
            got, want = (f"{h}x{w}" for h, w in (pixels.shape[-2:], self.size))
            raise DataError(
                f"{place}: images must be {want} after --resize and --crop, as the model's "
                f"--input-shape, got {got}. Pass --resize and --crop that give {want}."
            )
        images = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        steps = self.preprocessing
        if steps is None:
            return images
        steps.check(images.shape[-3], place)
        mean, std = (
            torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (steps.mean, steps.std)
        )
        return (images - mean) / std

    def _channels(self, pixels: Tensor, place: str) -> Tensor:
        have, want = pixels.shape[-3], self.channels
        if want in (None, have):
            return pixels
        if (have, want) == (3, 1):
            from torchvision.transforms import functional as TF

            return TF.rgb_to_grayscale(pixels)
        if (have, want) == (1, 3):
            return pixels.expand(*pixels.shape[:-3], 3, -1, -1)
        raise DataError(
            f"{place}: the model takes {want} channels (--input-shape), the images have {have}. "
            "Give data with as many channels, or correct --input-shape."
        )

    def _sized(self, pixels: Tensor) -> Tensor:
        from torchvision.transforms import functional as TF

        steps = self.preprocessing
        if steps is not None and self.resizes:
            if steps.resize is not None:
                pixels = TF.resize(pixels, [steps.resize], antialias=True)
            return pixels if steps.crop is None else TF.center_crop(pixels, [steps.crop])
        have = tuple(pixels.shape[-2:])
        if self.size is None or have == self.size:
            return pixels
        scale = max(want / n for want, n in zip(self.size, have, strict=True))
        cover = [max(want, round(n * scale)) for want, n in zip(self.size, have, strict=True)]
        return TF.center_crop(TF.resize(pixels, cover, antialias=True), list(self.size))


class ImageSet(Dataset[Batch]):
    """Images read a batch at a time.

    Parameters
    ----------
    read
        Indices -> images (N, C, H, W), float32, ready for the model.
    labels
        (N,) int64, or None.
    """

    def __init__(
        self, read: Callable[[Sequence[int]], Tensor], count: int, labels: Tensor | None
    ) -> None:
        self.read, self.count, self.labels = read, count, labels

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        """One sample without its batch axis."""
        return tuple(tensor[0] for tensor in self.__getitems__([index]))

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """One batch: the DataLoader asks for all of its samples at once."""
        images = self.read(indices)
        return (images,) if self.labels is None else (images, self.labels[list(indices)])


class PixelSet(ImageSet):
    """Images that lie in memory: `types.Resident`.

    Parameters
    ----------
    pixels
        (N, C, H, W), uint8 or float32.
    prepare
        (n, C, H, W) of them -> (n, C', H', W') float32, ready for the model, on the same device.
    """

    def __init__(
        self, pixels: Tensor, labels: Tensor | None, prepare: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__(self._rows, len(pixels), labels)
        self.pixels, self.prepare = pixels, prepare

    def _rows(self, indices: Sequence[int]) -> Tensor:
        return self.batch(torch.tensor(list(indices), dtype=torch.long))[0]

    @property
    def nbytes(self) -> int:
        """Memory that the pixels take."""
        return self.pixels.nbytes

    def on(self, device: torch.device) -> PixelSet:
        """The same, the pixels on a device; labels are few."""
        return PixelSet(self.pixels.to(device), self.labels, self.prepare)

    def batch(self, indices: Tensor) -> Batch:
        """(n,) indices on the CPU -> images (n, C', H', W') and, where there are any, labels."""
        images = self.prepare(self.pixels[indices.to(self.pixels.device)].contiguous())
        return (images,) if self.labels is None else (images, self.labels[indices])


class Shuffled(Sampler[int]):
    """Indices in an order that (seed, epoch) decides: the same one until ``set_epoch``."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        mixed = (self.seed * 1_000_003 + self.epoch) % 2**63  # the range of torch's seeds
        generator = torch.Generator().manual_seed(mixed)
        yield from torch.randperm(self.count, generator=generator).tolist()

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch


@dataclass(frozen=True)
class Loading:
    """How splits become loaders; ``batch_size`` and ``holdout`` are upper limits."""

    batch_size: int = 128
    seed: int = 0
    holdout: int = 1000
    workers: int = 0


def split(count: int, taken: int, seed: int) -> tuple[list[int], list[int]]:
    """Seeded split of ``range(count)`` into (rest, taken), each in rising order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[taken:]), sorted(order[:taken])


def holdout_split(count: int, loading: Loading, place: str) -> tuple[list[int], list[int]]:
    """Pick indices to train on and to hold out: at most 20 % of the images, at least one.

    Raises
    ------
    DataError
        If there are fewer than two images.
    """
    if count < 2:
        raise DataError(f"{place}: the training split needs at least 2 images, got {count}.")
    return split(count, max(1, min(loading.holdout, count // 5)), loading.seed)


def build(
    train: ImageSet,
    test: ImageSet | None,
    loading: Loading,
    *,
    classes: int | None,
    source: str,
    notes: Sequence[str] = (),
) -> Data:
    """Hold images out of ``train`` and put a loader on each split; only train is shuffled."""
    rest, held = holdout_split(len(train), loading, source)
    if test is None:
        notes = (*notes, NO_TEST)

    # A small training set is cut into more batches: an epoch of a few steps teaches nothing.
    batch_size = min(loading.batch_size, max(8, len(rest) // 32))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    forward = {"batch_size": min(loading.batch_size, forward_batch(train[0][0], device))}
    return Data(
        train=loader(
            Subset(train, rest),
            loading,
            batch_size=batch_size,
            sampler=Shuffled(len(rest), loading.seed),
            drop_last=len(rest) > batch_size,  # a last batch of one has no batch statistics
        ),
        holdout=loader(Subset(train, held), loading, **forward),
        test=None if test is None else loader(test, loading, **forward),
        labelled=train.labels is not None,
        classes=classes,
        source=source,
        notes=tuple(notes),
    )


def loader(images: Dataset[Batch], loading: Loading, **how: Any) -> DataLoader[Batch]:
    """Images batch by batch."""
    how = {"batch_size": loading.batch_size, **how}
    return DataLoader(
        images,
        num_workers=loading.workers,
        pin_memory=torch.cuda.is_available(),  # the copy to the device then does not wait
        collate_fn=_as_read,
        generator=torch.Generator().manual_seed(loading.seed),  # leaves the global one alone
        **how,
    )


def is_built(loader: Any) -> bool:
    """Whether `build` made the loader: what it yields is known."""
    return isinstance(loader, DataLoader) and loader.collate_fn is _as_read


def _as_read(batch: Any) -> Any:
    return batch
