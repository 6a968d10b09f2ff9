"""Train the built-in example and write its weights.

The number of epochs and the augmentation are fixed here; nothing is chosen on the test images,
which are scored once, at the end.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from factorize.data.digits import digits_data
from factorize.models.digits import DigitsNet
from factorize.types import Batch

WEIGHTS = Path(__file__).parents[1] / "factorize" / "models" / "digits.safetensors"


def shifted(images: Tensor) -> Tensor:
    """Move each (1, 8, 8) image by -1, 0 or 1 pixels along each axis; zeros come in."""
    n = len(images)
    padded = F.pad(images[:, 0], (1, 1, 1, 1))  # (N, 10, 10)
    rows = torch.randint(0, 3, (n, 1, 1)) + torch.arange(8).view(1, 8, 1)
    columns = torch.randint(0, 3, (n, 1, 1)) + torch.arange(8).view(1, 1, 8)
    return padded[torch.arange(n).view(n, 1, 1), rows, columns][:, None]


def accuracy(model: DigitsNet, batches: list[Batch]) -> float:
    """Share of images whose largest logit is that of their label."""
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    return right / sum(len(y) for _, y in batches)


def main() -> None:
    """Train for a fixed number of epochs, print the test accuracy, write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="the safetensors file to write")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    data = digits_data(batch_size=64, seed=options.seed, holdout=100)
    assert data.test is not None
    batches = len(list(data.train))
    model = DigitsNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, options.epochs * batches)

    start = time.perf_counter()
    for epoch in range(options.epochs):
        model.train()
        total = 0.0
        for images, labels in data.train:
            loss = F.cross_entropy(model(shifted(images)), labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(
            f"epoch {epoch + 1:2d}  loss {total / batches:.4f}  "
            f"held out {accuracy(model, list(data.holdout)):.4f}",
            flush=True,
        )

    seconds = time.perf_counter() - start
    temporary = options.out.with_name(options.out.name + ".tmp")
    save_file(model.state_dict(), temporary)
    temporary.replace(options.out)
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, Python "
        f"{platform.python_version()}, torch {torch.__version__}, seed {options.seed}, "
        f"{seconds:.0f} s\ntest accuracy {accuracy(model, list(data.test)):.4f}, "
        f"{sum(p.numel() for p in model.parameters())} parameters, "
        f"{options.out.stat().st_size} bytes -> {options.out}"
    )


if __name__ == "__main__":
    main()
