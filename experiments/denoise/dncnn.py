r"""DnCNN (Zhang et al., TIP 2017) and its metric, PSNR: a net that does not classify.

    python -m factorize dncnn.pth --arch experiments/denoise/dncnn.py:dncnn \
        --input-shape 1,64,64 --evaluate experiments/denoise/dncnn.py:psnr --rank 48 \
        --data experiments/denoise/dncnn.py:noisy_crops --finetune 1

The variables DENOISE_TEST and DENOISE_TRAIN name folders of grey PNG images.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.io import ImageReadMode, decode_image

SIGMA = 15 / 255
SEED = 0
CROP = 48
CROPS_PER_IMAGE = 2


class DnCNN(nn.Module):
    """Predicts the noise of a grey image (N, 1, H, W) in 0..1."""

    def __init__(self, layers: int = 17, channels: int = 64) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.ReLU()]
        for _ in range(layers - 2):
            parts.append(nn.Conv2d(channels, channels, 3, padding=1, bias=False))
            parts += [nn.BatchNorm2d(channels), nn.ReLU()]
        parts.append(nn.Conv2d(channels, 1, 3, padding=1, bias=False))
        self.dncnn = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.dncnn(x)


def dncnn() -> DnCNN:
    """The 17 layers of DnCNN-S."""
    return DnCNN()


def psnr(model: nn.Module) -> float:
    """Mean PSNR in dB over the test images, noise of sigma 15/255 added; higher is better."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(SEED)
    values = []
    for clean in _images("DENOISE_TEST"):
        noisy = clean + SIGMA * torch.randn(clean.shape, generator=generator)
        noise = model(noisy.unsqueeze(0).to(device)).squeeze(0).cpu()
        error = (noisy - noise).clamp(0, 1) - clean
        values.append(float(-10 * error.square().mean().log10()))
    return sum(values) / len(values)


def noisy_crops() -> dict[str, DataLoader]:
    """Noisy crops (N, 1, 48, 48) of the training images; no targets, the net is the teacher."""
    generator = torch.Generator().manual_seed(SEED)
    crops = []
    for clean in _images("DENOISE_TRAIN"):
        for _ in range(CROPS_PER_IMAGE):
            top, left = (
                int(torch.randint(size - CROP + 1, (), generator=generator))
                for size in clean.shape[1:]
            )
            crop = clean[:, top : top + CROP, left : left + CROP]
            crops.append(crop + SIGMA * torch.randn(crop.shape, generator=generator))
    return {"train": DataLoader(TensorDataset(torch.stack(crops)), batch_size=16, shuffle=True)}


def _images(variable: str) -> list[Tensor]:
    """Grey images (1, H, W) in 0..1, by name, from the folder that a variable names."""
    folder = Path(os.environ.get(variable, ""))
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise FileNotFoundError(f"no PNG images in {variable}={folder}")
    return [decode_image(str(path), ImageReadMode.GRAY) / 255 for path in paths]
