"""Batches that only go forward are small enough for a CPU's cache; those of a user stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from factorize.data.load_data import load_data
from factorize.fit import calibration_images
from factorize.tensor.call import POSITIONS, forward_batch
from factorize.types import Data


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((3, 32, 32), 64), ((3, 64, 64), 16), ((3, 224, 224), 4), ((1, 4096), 16), ((5,), POSITIONS)],
)
def test_a_batch_has_as_many_samples_as_positions_allow(shape: tuple[int, ...], expected: int):
    assert forward_batch(torch.zeros(shape)) == expected
    assert forward_batch(torch.zeros(shape), "cuda") > 10**9


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes whole batches")
def test_held_out_images_come_in_such_batches_and_training_images_do_not(tmp_path: Path):
    images = np.zeros((600, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "train.npz", images=images)
    np.savez(tmp_path / "test.npz", images=images[:100])
    data = load_data(tmp_path, batch_size=100)
    assert data.test is not None
    assert [len(batch[0]) for batch in data.test] == [64, 36]
    assert max(len(batch[0]) for batch in data.holdout) == 64
    small = load_data(tmp_path, batch_size=10)  # an upper limit
    assert max(len(batch[0]) for batch in small.holdout) == 10


def test_images_to_fit_to_come_in_half_such_batches_all_of_them():
    images = torch.arange(100.0).reshape(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    train = DataLoader(TensorDataset(images), 50)
    parts = calibration_images(nn.Conv2d(3, 1, 1), Data(train, train), 90, seed=0)
    assert [len(part) for part in parts] == [32, 18, 32, 8]
    assert len(torch.cat(parts)[:, 0, 0, 0].unique()) == 90
