"""What the tests of fine-tuning share: a small net, its images, and an interruption."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from factorize.types import Data


def net(seed: int, outputs: int = 4, dropout: float = 0.2) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, outputs),
    )


def dataset(count: int = 96, labelled: bool = True, seed: int = 0, loader: bool = True) -> Data:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 8, 8, generator=generator)
    labels = torch.randint(0, 4, (count,), generator=generator)
    tensors = (images, labels) if labelled else (images,)
    whole = TensorDataset(*tensors)
    train = DataLoader(whole, batch_size=16, shuffle=True)
    if not loader:
        train = [tuple(t[i : i + 16] for t in tensors) for i in range(0, count, 16)]
    held = [tuple(t[:32] for t in tensors)]
    return Data(train, held, None, labelled, 4 if labelled else None, "test")


def equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(ours[key], theirs[key]) for key in ours)


def pressed_at(step: int) -> Callable[..., None]:
    """Progress that is interrupted then."""

    def progress(stage: str, done: int, total: int, values: dict[str, float]) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress
