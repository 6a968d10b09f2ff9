"""The built-in example's images: scikit-learn's handwritten digits."""

from __future__ import annotations

import torch
from torch import Tensor

from factorize.data.images import Loading, PixelSet, build
from factorize.errors import DataError
from factorize.types import Data


def digits_data(
    batch_size: int = 128, seed: int = 0, holdout: int = 1000, workers: int = 0
) -> Data:
    """Load the 1,797 digits in [0, 1]: 80 % to train, 20 % to test, stratified, always the same.

    ``seed`` shuffles the training images and picks the held-out ones (at most 20 % of them).

    Raises
    ------
    DataError
        If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise DataError(
            "digits: the images come with scikit-learn, which is not installed. "
            "Run pip install 'factorize[demo]'."
        ) from None
    pixels, target = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels / 16.0).float().view(-1, 1, 8, 8)
    labels = torch.from_numpy(target).long()
    indices = train_test_split(
        list(range(len(images))), test_size=0.2, random_state=0, stratify=target
    )
    train, test = (PixelSet(images[rows], labels[rows], _as_it_is) for rows in indices)
    loading = Loading(batch_size, seed, holdout, workers)
    return build(train, test, loading, classes=10, source="digits")


def _as_it_is(images: Tensor) -> Tensor:
    return images
