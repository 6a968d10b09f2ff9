"""The batches of one epoch: the same in every run, from any batch on, shared among processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Subset

from factorize.errors import DataError
from factorize.system import processes
from factorize.tensor.call import batch_size, rows_of
from factorize.types import Batch, Resident

SHARE = 0.25  # of a device's memory that images may take


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
    sampler = getattr(getattr(train, "batch_sampler", None), "sampler", sampler)
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


class Feed:
    """The training batches, read the fastest way there is.

    Images that lie in memory as pixels, and fit into a quarter of the device's memory, are moved
    there once and made ready there; others come through the loader.
    """

    def __init__(self, train: Iterable[Batch], device: torch.device) -> None:
        self.train = train
        self.held: Resident | None = None
        self.indices: torch.Tensor | None = None  # of the subset that is trained on
        dataset = getattr(train, "dataset", None)
        if isinstance(dataset, Subset):
            self.indices, dataset = torch.as_tensor(dataset.indices), dataset.dataset
        if isinstance(dataset, Resident) and _fits(dataset, device):
            self.held = dataset.on(device)

    def batches(self, first: int, end: int) -> Iterator[tuple[int, Batch]]:
        """Give the size of each batch from ``first`` to ``end``, and this process's part of it.

        Batches before ``first`` are not read where that can be avoided. What a loader draws when it
        begins is drawn here, not with the first batch.
        """
        train = self.train
        sampler = train.batch_sampler if isinstance(train, DataLoader) else None
        if isinstance(train, DataLoader) and isinstance(train.dataset, IterableDataset):
            sampler = None  # it has no indices
        whole = first == 0 and processes.count() == 1 and self.held is None
        if sampler is None or whole:
            found = map(_part_of, islice(iter(train), first, end))
            return found if first else _some(found)
        listed = [list(batch) for batch in islice(iter(sampler), first, end)]
        # A batch of fewer images than processes is left out, but no loader can read nothing.
        parts = [batch[processes.part(len(batch))] or batch[:1] for batch in listed]
        return zip(map(len, listed), self._read(parts), strict=True)

    def _read(self, parts: list[list[int]]) -> Iterator[Batch]:
        if self.held is not None:
            return map(self._taken, parts)
        train = self.train
        assert isinstance(train, DataLoader)
        return iter(
            DataLoader(
                train.dataset,
                batch_sampler=parts,
                num_workers=train.num_workers,
                collate_fn=train.collate_fn,
                pin_memory=train.pin_memory,
                timeout=train.timeout,
                worker_init_fn=train.worker_init_fn,
                generator=train.generator,
                prefetch_factor=train.prefetch_factor,
            )
        )

    def _taken(self, part: list[int]) -> Batch:
        assert self.held is not None
        chosen = torch.tensor(part, dtype=torch.long)
        return self.held.batch(chosen if self.indices is None else self.indices[chosen])


def _some(batches: Iterator[tuple[int, Batch]]) -> Iterator[tuple[int, Batch]]:
    """All of them; none is an error, not a quick epoch."""
    start = next(batches, None)
    if start is None:
        raise DataError(
            "train: must have batches in every epoch, got none in this one. Give a DataLoader or "
            "a list of batches, which can be read more than once."
        )
    yield start
    yield from batches


def _part_of(batch: Batch) -> tuple[int, Batch]:
    size = batch_size(batch[0])
    own = processes.part(size)
    return size, tuple(rows_of(part, own) for part in batch)


def _fits(dataset: Resident, device: torch.device) -> bool:
    """Whether the pixels may lie on the device; on the CPU they do already."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return dataset.nbytes <= SHARE * free
