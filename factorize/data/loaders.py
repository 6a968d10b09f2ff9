"""Loaders of the user's own -> `Data`: looked at, held out from, their batches made plain."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from factorize.data.batches import has_bytes, label_kind, plain
from factorize.data.images import NO_TEST, Loading, Shuffled, holdout_split
from factorize.errors import DataError
from factorize.system.imports import brief
from factorize.tensor.call import batch_size
from factorize.types import Batch, Data

_SPLITS = ("train", "holdout", "test")


def from_loaders(
    loaders: Mapping[str, Any], loading: Loading, place: str, *, labelled: bool = True
) -> Data:
    """Make the splits one dataset; holdout images come off ``train`` where there are no others.

    Parameters
    ----------
    loaders
        ``train``, and ``holdout`` and ``test`` where they are there and not None: DataLoaders,
        Datasets, lists of batches, or whatever yields batches and can be read more than once.
    labelled
        Whether labels that are class numbers are to be used.

    Raises
    ------
    DataError
        One cannot be read, or only once, or has batches without images.
    """
    unknown = sorted(map(str, set(loaders) - set(_SPLITS)))
    if unknown or "train" not in loaders:
        got = f"{unknown} too" if "train" in loaders else f"only {sorted(map(str, loaders))}"
        raise DataError(
            f"{place}: loaders are 'train', 'holdout' and 'test', got {got}. Rename or drop them."
        )
    try:
        return _made(loaders, loading, place, labelled)
    except DataError:
        raise
    except Exception as failure:  # a user's code, which may raise anything
        raise DataError(f"{place}: a loader failed: {brief(failure)}") from failure


def _made(loaders: Mapping[str, Any], loading: Loading, place: str, labelled: bool) -> Data:
    splits: dict[str, Iterable[Batch]] = {}
    kinds: dict[str, tuple[bool, str]] = {}
    scaled = False
    for split, loader in loaders.items():
        if loader is None and split != "train":
            continue
        loader, where = as_loader(loader, loading, split == "train"), f"{place}: {split}"
        first = _first(loader, where)
        made = plain(first, where)
        splits[split], kinds[split] = _plainly(loader, first, made, where), label_kind(made)
        scaled = scaled or has_bytes(first)
    notes = ["uint8 images are divided by 255; normalisation is the loader's"] if scaled else []
    notes += _label_notes(kinds) if labelled else []
    how = {}
    if "holdout" not in splits:
        train, splits["holdout"], note = _held_out(splits["train"], loading, place)
        notes.append(note)
        if train is splits["train"]:  # none could be set apart
            how["holdout_of"] = "training images"
        splits["train"] = train
    if "test" not in splits:
        notes.append(NO_TEST)
    labelled = labelled and all(has for has, _ in kinds.values())
    return Data(**splits, labelled=labelled, source=place, notes=tuple(notes), **how)


def _label_notes(kinds: Mapping[str, tuple[bool, str]]) -> list[str]:
    """What is said of labels that are not used."""
    odd = [split for split, (_, what) in kinds.items() if what]
    bare = [split for split, (has, what) in kinds.items() if not has and not what]
    notes = []
    if odd:
        notes.append(
            f"labels of {', '.join(odd)} are not used: {kinds[odd[0]][1]}, not one class number "
            "for each image"
        )
    if bare and any(has for has, _ in kinds.values()):
        notes.append(f"no labels in {', '.join(bare)}: those of the other splits are not used")
    return notes


def as_loader(source: Any, loading: Loading, shuffled: bool) -> Any:
    """Load a Dataset, or a tensor of images, in batches; anything else is left as it is."""
    if isinstance(source, Tensor):
        source = TensorDataset(source)
    # Hugging Face's datasets are no torch Datasets.
    if not isinstance(source, Dataset) and not hasattr(source, "column_names"):
        return source
    if isinstance(source, IterableDataset):
        return DataLoader(source, loading.batch_size)
    count = len(source)  # pyright: ignore[reportArgumentType]
    size = min(loading.batch_size, max(8, count // 32))  # as in `images.build`
    return DataLoader(source, size, shuffle=shuffled)


def _first(loader: Any, place: str) -> Any:
    """The first batch, as it comes, of a loader that can be read again."""
    again = "must be readable more than once"
    fix = "Give a DataLoader or a list of batches."
    if not isinstance(loader, Iterable) or isinstance(loader, Iterator):
        raise DataError(f"{place}: {again}, got {type(loader).__name__}. {fix}")
    with torch.random.fork_rng([]):  # an order that is drawn
        once = iter(loader)
        batch = next(once, None)
        sure = isinstance(loader, (list, tuple)) or (
            isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
        )
        if batch is not None and not sure:
            second = iter(loader)
            if second is once or next(second, None) is None:
                raise DataError(
                    f"{place}: {again}, got {type(loader).__name__}, which is empty after one "
                    f"pass. {fix}"
                )
    return batch


def _plainly(loader: Any, first: Any, made: Batch, place: str) -> Iterable[Batch]:
    """The loader itself where its batches are plain, else one that makes them so."""
    kept = isinstance(first, (tuple, list)) and len(first) == len(made)
    if kept and all(a is b for a, b in zip(first, made, strict=True)):
        return loader
    if isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__:
        # Still a DataLoader: its order can be set, and parts of it read.
        changed = copy.copy(loader)
        changed.collate_fn = partial(_collated, loader.collate_fn, place)
        changed._iterator = None
        # Pinning makes lists of tuples, and a list of tensors is a list of images.
        changed.pin_memory = loader.pin_memory and not isinstance(made[0], tuple)
        return changed
    return _Plain(loader, place)


def _collated(collate: Any, place: str, samples: Any) -> Batch:
    return plain(collate(samples), place)


class _Plain:
    """The batches of what is no DataLoader, made plain."""

    def __init__(self, batches: Iterable[Any], place: str) -> None:
        self.batches, self.place = batches, place

    def __iter__(self) -> Iterator[Batch]:
        return (plain(batch, self.place) for batch in self.batches)

    def __len__(self) -> int:
        return len(self.batches)  # pyright: ignore[reportArgumentType]


def _held_out(
    train: Any, loading: Loading, place: str
) -> tuple[Iterable[Batch], Iterable[Batch], str]:
    """Take holdout images off a loader: apart where its dataset can be split, else in common."""
    samplers = (RandomSampler, SequentialSampler)
    if isinstance(train, DataLoader) and isinstance(train.sampler, samplers) and train.batch_size:
        rest, held = holdout_split(len(train.dataset), loading, place)  # pyright: ignore[reportArgumentType]
        same = {
            "num_workers": train.num_workers,
            "collate_fn": train.collate_fn,
            "pin_memory": train.pin_memory,
            "batch_size": train.batch_size,
        }
        shuffled = isinstance(train.sampler, RandomSampler)
        return (
            DataLoader(
                Subset(train.dataset, rest),
                sampler=Shuffled(len(rest), loading.seed) if shuffled else None,
                drop_last=train.drop_last,
                worker_init_fn=train.worker_init_fn,
                **same,
            ),
            DataLoader(Subset(train.dataset, held), **same),
            f"no holdout loader: {len(held)} training images are held out instead",
        )
    held_batches: list[Batch] = []
    with torch.random.fork_rng([]):
        for batch in train:
            held_batches.append(tuple(batch))
            if sum(batch_size(b[0]) for b in held_batches) >= loading.holdout:
                break
    return train, held_batches, "no holdout loader: the first batches of train, tuned on, stand in"
