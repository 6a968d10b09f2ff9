"""What the tests of loading share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from factorize.errors import ModelLoadError
from factorize.models.load_model import load_model
from factorize.types import Preprocessing

IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 256, 224)


def assert_same(got: nn.Module, expected: nn.Module) -> None:
    """Same tensors by name, on the CPU, ready to run."""
    assert not got.training
    ours, theirs = got.state_dict(), expected.state_dict()
    assert list(ours) == list(theirs)
    for key, tensor in ours.items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, theirs[key].to(tensor.dtype)), key


def saved(value: object, tmp_path: Path, name: str = "model.pt", **options: object) -> Path:
    path = tmp_path / name
    torch.save(value, path, **options)  # pyright: ignore[reportArgumentType]
    return path


def tiny() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    ).eval()


def refusal(path: Path | str, **options: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    assert message.startswith(str(path))
    return message
