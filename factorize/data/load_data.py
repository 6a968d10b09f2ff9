"""Datasets by name: a folder, ``.npz`` files, ``digits``, or a function that returns loaders.

The use of each split is fixed: tune on train, choose on holdout, report on test.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from factorize.data.digits import digits_data
from factorize.data.image_folder import image_folder
from factorize.data.images import Loading, Transform, build
from factorize.data.loaders import from_loaders
from factorize.data.npz import npz_file, npz_folder
from factorize.data.synthetic import SYNTHETIC, is_synthetic, synthetic_data
from factorize.errors import DataError
from factorize.system.imports import brief, import_function
from factorize.types import Data, Preprocessing

_MOST_PIXELS = 10_000  # of a side
_MOST_WORKERS = 8


def load_data(
    source: str | Path,
    *,
    preprocessing: Preprocessing | None = None,
    input_shape: tuple[int, ...] | None = None,
    batch_size: int = 128,
    seed: int = 0,
    holdout: int = 1000,
    workers: int | None = None,
    skip_bad: int = 0,
) -> Data:
    """Load a dataset for a model that takes images of ``input_shape`` (C, H, W), or (C,) alone.

    Parameters
    ----------
    source
        - a folder in ImageFolder layout: ``train/`` and ``val/`` or ``test/``; without class
          folders the images have no labels; or a flat folder of images;
        - an ``.npz`` file with ``images`` (N, H, W), (N, H, W, C) or (N, C, H, W), uint8 or float,
          and optionally ``labels`` (N,), which is split 80 : 20 into train and test;
        - a folder with ``train*.npz`` and ``test.npz`` or ``val.npz``;
        - ``digits``;
        - ``synthetic``: images made up, where there are none, see `data.synthetic`;
        - ``module:function`` or ``path/file.py:function``, whose loaders are (train, test) or a
          dict of ``train`` and optionally ``holdout`` and ``test``, see `as_data`; what each
          yields is ready for the model, but for uint8, which is divided by 255.
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
    skip_bad
        So many images of a folder, at most, may be unreadable: all are tried before any work is
        done, and those left out are named in the notes. 0: the first one that is met is an error.

    Raises
    ------
    DataError
        If it cannot be read or does not fit the model.
    """
    _check_numbers(preprocessing, seed, skip_bad)
    loading = Loading(batch_size, seed, holdout, workers or 0)
    name, path = str(source), Path(source).expanduser()
    if name == "digits":
        if input_shape not in (None, (1,), (1, 8, 8)):
            raise DataError(
                f"digits: the images are 1x8x8, the model takes {'x'.join(map(str, input_shape))}. "
                "Use it with the digits model, or give the data the model was trained on."
            )
        return digits_data(batch_size, seed, holdout, loading.workers)
    if is_synthetic(name):
        if input_shape is None:
            raise DataError(f"{SYNTHETIC}: the shape of an input must be known. Give input_shape.")
        return synthetic_data(
            input_shape, preprocessing=preprocessing, batch_size=batch_size, seed=seed
        )
    if ":" in name and not path.exists():
        return _from_function(name, loading)
    if input_shape is not None and len(input_shape) not in (1, 3):
        raise DataError(f"{source}: files of images have (C, H, W), got the shape {input_shape}.")
    transform, classes = Transform.of(preprocessing, input_shape), None
    if path.is_dir():
        trains = sorted(path.glob("train*.npz"))
        if trains:
            tests = [path / n for n in ("test.npz", "val.npz") if (path / n).is_file()]
            train, test, notes = npz_folder(trains, tests[0] if tests else None, transform)
        else:
            if workers is None and torch.cuda.is_available():
                loading = replace(loading, workers=min(_MOST_WORKERS, os.cpu_count() or 1))
            train, test, classes, notes = image_folder(
                path, transform, skip_bad=skip_bad, workers=loading.workers
            )
    elif path.suffix == ".npz" and path.is_file():
        train, test, notes = npz_file(path, transform, seed)
    else:
        raise DataError(
            f"{source}: data must be a folder, an .npz file, digits, synthetic or module:function, "
            f"got {'another kind of file' if path.exists() else 'a path that does not exist'}. "
            "Correct --data."
        )
    data = build(train, test, loading, classes=classes, source=name, notes=notes)
    return replace(data, preprocessing=preprocessing or Preprocessing((0.0,), (1.0,)))


def _check_numbers(preprocessing: Preprocessing | None, seed: int, skip_bad: int) -> None:
    if skip_bad < 0:
        raise DataError(f"skip_bad: must be 0 or more, got {skip_bad}. Correct --skip-bad.")
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
    return from_loaders(loaders, loading, reference)
