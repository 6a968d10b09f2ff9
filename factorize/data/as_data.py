"""Images as people have them -> `types.Data`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from factorize.data.images import NO_TEST, Loading, is_built
from factorize.data.load_data import load_data
from factorize.data.loaders import from_loaders
from factorize.data.synthetic import SYNTHETIC
from factorize.types import Data


def as_data(
    source: Any,
    example_input: Any = None,
    *,
    seed: int = 0,
) -> Data:
    """Make a dataset of whatever holds images; `Data` that is complete stays what it is.

    Parameters
    ----------
    source
        - a DataLoader, a Dataset, a tensor of images (N, C, H, W), a list of batches, or whatever
          else yields batches and can be read more than once;
        - a dict of such with ``train`` and optionally ``holdout`` and ``test``;
        - what `load_data` takes: a path, ``digits``, ``synthetic``, ``module:function``;
        - `Data`, of which only ``train`` must be given.

        Batches are (images, labels), (images,), images, or dicts with keys such as
        ``pixel_values`` or ``image`` and ``labels``. Images are a tensor, a tuple or dict of
        several inputs, or a list of (C, H, W) as detectors take them. uint8 is divided by 255.
    example_input
        A batch as the model takes it: images from a path are brought to its size.
    seed
        Picks the images that are held out of ``train`` where there is no ``holdout``, at most
        1,000 and 20 %.

    Raises
    ------
    DataError
        It cannot be read, or only once, or has no images.
    """
    loading = Loading(seed=seed)
    if isinstance(source, Data):
        return _completed(source, loading)
    if isinstance(source, (str, Path)):
        made_up = str(source) == SYNTHETIC
        image = isinstance(example_input, Tensor) and (made_up or example_input.ndim == 4)
        shape: Any = tuple(example_input.shape[1:]) if image else None
        data = load_data(source, input_shape=shape, seed=seed)
        if not is_built(data.train) or data.source in ("digits", SYNTHETIC):
            return data
        told = "pixels are divided by 255 and not normalised: see preprocessing of load_data"
        return replace(data, notes=(*data.notes, told))
    loaders = source if isinstance(source, Mapping) else {"train": source}
    return from_loaders(loaders, loading, _name(source))


def _completed(data: Data, loading: Loading) -> Data:
    held = None if isinstance(data.holdout, tuple) and not data.holdout else data.holdout
    splits = {"train": data.train, "holdout": held, "test": data.test}
    if all(is_built(split) for split in splits.values() if split is not None) and held is not None:
        return data
    made = from_loaders(splits, loading, data.source, labelled=data.labelled)
    notes = (*data.notes, *(note for note in made.notes if note != NO_TEST))
    return replace(
        data,
        train=made.train,
        holdout=made.holdout,
        test=made.test,
        labelled=made.labelled,
        notes=tuple(dict.fromkeys(notes)),
        holdout_of=made.holdout_of if held is None else data.holdout_of,
    )


def _name(source: Any) -> str:
    """What the images are called in the report."""
    if isinstance(source, Mapping):
        return _name(source.get("train"))
    kind = type(getattr(source, "dataset", source)).__name__
    return "a list of batches" if kind in ("list", "tuple") else kind
