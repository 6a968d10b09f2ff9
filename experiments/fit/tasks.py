"""The nets of the experiment: a trained model, calibration images, and a score on test images."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / "cifar10"), str(HERE.parent / "denoise")]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHECKPOINTS = {
    "resnet20": "resnet20-12fca82f.th",
    "resnet56": "resnet56-4bfd9763.th",
    "dncnn": "dncnn-s15.pth",
}


@dataclass(frozen=True)
class Task:
    """One net and its data.

    Attributes
    ----------
    calibration
        ``(count, seed) -> images`` (count, C, H, W), from training files.
    score
        Top-1 in percent or PSNR in dB, on the test files.
    """

    model: nn.Module
    calibration: Callable[[int, int], Tensor]
    score: Callable[[nn.Module], float]
    unit: str
    batch: int


def task(name: str, data: Path) -> Task:
    """The net of that name with its weights, from the folder of shared data."""
    return _dncnn(data) if name == "dncnn" else _resnet(name, data)


def _load(model: nn.Module, path: Path) -> nn.Module:
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return model.eval()


def _resnet(name: str, data: Path) -> Task:
    import resnet

    def images_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
        with np.load(path) as file:
            return file["images"], file["labels"]

    def prepared(images: np.ndarray) -> Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std

    def calibration(count: int, seed: int) -> Tensor:
        images, _ = images_of(data / "cifar10" / f"train_{seed % 5}.npz")
        order = np.random.default_rng(seed).permutation(len(images))[:count]
        return prepared(images[order])

    test_images, labels = images_of(data / "cifar10" / "test.npz")
    test, wanted = prepared(test_images), torch.from_numpy(labels).long()

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            found = torch.cat([model(batch).argmax(1) for batch in test.split(500)])
        return 100 * float((found == wanted).float().mean())

    model = _load(getattr(resnet, name)(), data / "models" / CHECKPOINTS[name])
    return Task(model, calibration, score, "top-1 %", 100)


def _dncnn(data: Path) -> Task:
    os.environ["DENOISE_TRAIN"] = str(data / "denoise" / "train")
    os.environ["DENOISE_TEST"] = str(data / "denoise" / "set12")
    import dncnn

    def calibration(count: int, seed: int) -> Tensor:
        dncnn.SEED, dncnn.CROPS_PER_IMAGE = seed, 4
        crops = torch.cat([batch[0] for batch in dncnn.noisy_crops()["train"]])
        order = torch.randperm(len(crops), generator=torch.Generator().manual_seed(seed))
        return crops[order[:count]]

    def score(model: nn.Module) -> float:
        dncnn.SEED = 0  # the noise of the test images stays the same
        with torch.no_grad():
            return dncnn.psnr(model)

    model = _load(dncnn.dncnn(), data / "models" / CHECKPOINTS["dncnn"])
    return Task(model, calibration, score, "PSNR dB", 16)
