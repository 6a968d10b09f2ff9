"""Datasets by name: a folder, ``.npz`` files, ``digits``, or a function that returns loaders.

The use of each split is fixed: tune on train, choose on holdout, report on test.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset

from factorize.data.digits import digits_data
from factorize.data.image_folder import image_folder
from factorize.data.images import Loading, Shuffled, Transform, build, holdout_split
from factorize.data.npz import npz_file, npz_folder
from factorize.errors import DataError
from factorize.system.imports import brief, import_function
from factorize.types import Batch, Data, Preprocessing

_MOST_PIXELS = 10_000  # of a side
_MOST_WORKERS = 8


def load_data(
    source: str | Path,
    *,
    preprocessing: Preprocessing | None = None,
    input_shape: tuple[int, int, int] | None = None,
    batch_size: int = 128,
    seed: int = 0,
    holdout: int = 1000,
    workers: int | None = None,
) -> Data:
    """Load a dataset for a model that takes images of ``input_shape`` (C, H, W).

    Parameters
    ----------
    source
        - a folder in ImageFolder layout: ``train/`` and ``val/`` or ``test/``; without class
          folders the images have no labels; or a flat folder of images;
        - an ``.npz`` file with ``images`` (N, H, W), (N, H, W, C) or (N, C, H, W), uint8 or float,
          and optionally ``labels`` (N,), which is split 80 : 20 into train and test;
        - a folder with ``train*.npz`` and ``test.npz`` or ``val.npz``;
        - ``digits``;
        - ``module:function`` or ``path/file.py:function``, whose loaders are (train, test) or a
          dict of ``train`` and optionally ``holdout`` and ``test``; each yields
          (images, labels) or (images,), ready for the model.
    preprocessing
        None: pixels / 255, resized and centre-cropped to ``input_shape`` where that differs.
        It is not applied to ``digits`` nor to a function's loaders.
    batch_size
        At most; a small training set is cut into smaller batches.
    holdout
        Images taken off the training split and never trained on; at most 20 % of it.
    workers
        Processes that read images; 0 reads in this one. None: up to 8 for a folder of images where
        there is a GPU that they would keep waiting, else 0.

    Raises
    ------
    DataError
        If it cannot be read or does not fit the model.
    """
    _check_numbers(preprocessing, seed)
    loading = Loading(batch_size, seed, holdout, workers or 0)
    name, path = str(source), Path(source).expanduser()
    if name == "digits":
        if input_shape not in (None, (1, 8, 8)):
            raise DataError(
                f"digits: the images are 1x8x8, the model takes {'x'.join(map(str, input_shape))}. "
                "Use it with the digits model, or give the data the model was trained on."
            )
        return digits_data(batch_size, seed, holdout, loading.workers)
    if ":" in name and not path.exists():
        return _from_function(name, loading)
    transform = Transform.of(preprocessing, input_shape)
    if path.is_dir():
        trains = sorted(path.glob("train*.npz"))
        if trains:
            tests = [path / n for n in ("test.npz", "val.npz") if (path / n).is_file()]
            parts = npz_folder(trains, tests[0] if tests else None, transform)
        else:
            parts = image_folder(path, transform)
            if workers is None and torch.cuda.is_available():
                loading = replace(loading, workers=min(_MOST_WORKERS, os.cpu_count() or 1))
    elif path.suffix == ".npz" and path.is_file():
        parts = npz_file(path, transform, seed)
    else:
        raise DataError(
            f"{source}: data must be a folder, an .npz file, digits or module:function, got "
            f"{'another kind of file' if path.exists() else 'a path that does not exist'}. "
            "Correct --data."
        )
    train, test, classes, notes = parts
    return build(train, test, loading, classes=classes, source=name, notes=notes)


def _check_numbers(preprocessing: Preprocessing | None, seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise DataError(f"seed: must be in 0..2**63 - 1, got {seed}. Correct --seed.")
    for name in ("resize", "crop"):
        value = getattr(preprocessing, name, None)
        if value is not None and not 1 <= value <= _MOST_PIXELS:
            raise DataError(
                f"{name}: must be in 1..{_MOST_PIXELS:,} pixels, got {value}. Correct --{name}."
            )


def _from_function(reference: str, loading: Loading) -> Data:
    function = import_function(reference, error=DataError)
    try:
        loaders = function()
    except (Exception, SystemExit) as failure:
        raise DataError(f"{reference}: the function failed: {brief(failure)}") from failure
    if isinstance(loaders, (tuple, list)) and len(loaders) == 2:
        loaders = {"train": loaders[0], "test": loaders[1]}
    if not isinstance(loaders, Mapping) or "train" not in loaders:
        raise DataError(
            f"{reference}: must return (train, test) or a dict with 'train' and optionally "
            f"'holdout' and 'test', got {type(loaders).__name__}. Return one of these."
        )
    unknown = sorted(map(str, set(loaders) - {"train", "holdout", "test"}))
    if unknown:
        raise DataError(
            f"{reference}: loaders are 'train', 'holdout' and 'test', got {unknown} too. "
            "Rename or drop them."
        )
    try:
        return _checked(loaders, loading, reference)
    except DataError:
        raise
    except Exception as failure:  # a user's code, which may raise anything
        raise DataError(f"{reference}: a loader failed: {brief(failure)}") from failure


def _checked(loaders: Mapping[str, Any], loading: Loading, reference: str) -> Data:
    labelled = {
        split: _labelled(loader, f"{reference}: {split}")
        for split, loader in loaders.items()
        if loader is not None or split == "train"
    }
    notes, how = [], {}
    if any(labelled.values()) and not all(labelled.values()):
        bare = ", ".join(split for split, has in labelled.items() if not has)
        notes.append(f"no labels in {bare}: those of the other splits are not used")
    train, held, test = loaders["train"], loaders.get("holdout"), loaders.get("test")
    if held is None:
        train, held, note = _held_out(train, loading, reference)
        notes.append(note)
        if train is loaders["train"]:  # none could be set apart
            how["holdout_of"] = "training images"
    if test is None:
        notes.append("no test split: nothing can be reported on test images")
    return Data(train, held, test, all(labelled.values()), None, reference, tuple(notes), **how)


def _labelled(loader: Any, place: str) -> bool:
    """Look at the first batch: whether it has class numbers beside the images."""
    if not isinstance(loader, Iterable) or iter(loader) is loader:
        raise DataError(
            f"{place}: must be readable more than once, got {type(loader).__name__}. "
            "Return a DataLoader or a list of batches."
        )
    batch = next(iter(loader), None)
    if not isinstance(batch, (tuple, list)) or not batch or not isinstance(batch[0], Tensor):
        got = "no batch" if batch is None else type(batch).__name__
        raise DataError(
            f"{place}: each batch must be a tuple (images, labels) or (images,) of tensors, got "
            f"{got}. Yield such tuples."
        )
    if len(batch) < 2 or not isinstance(batch[1], Tensor):
        return False
    images, labels = batch[:2]
    return labels.shape == images.shape[:1] and not labels.is_floating_point()


def _held_out(
    train: Any, loading: Loading, reference: str
) -> tuple[Iterable[Batch], Iterable[Batch], str]:
    """Take holdout images off a loader: apart where its dataset can be split, else in common."""
    plain = (RandomSampler, SequentialSampler)
    if isinstance(train, DataLoader) and isinstance(train.sampler, plain) and train.batch_size:
        rest, held = holdout_split(len(train.dataset), loading, reference)  # pyright: ignore[reportArgumentType]
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
    for batch in train:
        held_batches.append(tuple(batch))
        if sum(len(b[0]) for b in held_batches) >= loading.holdout:
            break
    return train, held_batches, "no holdout loader: the first batches of train, tuned on, stand in"
