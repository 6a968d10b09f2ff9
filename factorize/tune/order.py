"""The batches of one epoch: the same in every run, from any batch on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from factorize.errors import DataError
from factorize.types import Batch


def length(batches: Iterable[Batch]) -> int:
    """Count the batches of an epoch.

    Raises
    ------
    DataError
        If the loader cannot say, or has none.
    """
    try:
        count = len(batches)  # pyright: ignore[reportArgumentType]
    except TypeError:
        count = 0
    if count < 1:
        raise DataError(
            "train: the loader must have a length of at least one batch, got none. Return a "
            "DataLoader over a map-style dataset, or a list of batches."
        )
    return count


@contextmanager
def ordered(train: Iterable[Batch], seed: int) -> Iterator[None]:
    """Let the seed alone decide the order in which a DataLoader takes its samples."""
    sampler: Any = getattr(train, "sampler", None)
    if hasattr(sampler, "set_epoch"):
        before = getattr(sampler, "epoch", 0)
        sampler.set_epoch(seed)
        try:
            yield
        finally:
            sampler.set_epoch(before)
    elif hasattr(sampler, "generator"):  # torch's own samplers
        before = sampler.generator
        sampler.generator = torch.Generator().manual_seed(seed)
        try:
            yield
        finally:
            sampler.generator = before
    else:
        yield


def from_batch(train: Iterable[Batch], first: int, end: int) -> Iterator[Batch]:
    """Yield the batches ``first`` to ``end`` of an epoch, skipped ones unread where possible."""
    if first and isinstance(train, DataLoader) and train.batch_sampler is not None:
        from accelerate import skip_first_batches

        return islice(iter(skip_first_batches(train, first)), end - first)
    return islice(iter(train), first, end)
