r"""DnCNN (Zhang et al., TIP 2017) and its metric, PSNR: a net that does not classify.

    python -m factorize dncnn.pth --arch experiments/denoise/dncnn.py:dncnn \
        --input-shape 1,64,64 --evaluate experiments/denoise/dncnn.py:psnr --rank 16

``psnr`` reads the test images from the folder that the variable DENOISE_TEST names.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_image

SIGMA = 15 / 255
SEED = 0


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
    folder = Path(os.environ.get("DENOISE_TEST", ""))
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise FileNotFoundError(f"no PNG images in DENOISE_TEST={folder}")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(SEED)
    values = []
    for path in paths:
        clean = decode_image(str(path), ImageReadMode.GRAY).unsqueeze(0) / 255  # (1, 1, H, W)
        noisy = clean + SIGMA * torch.randn(clean.shape, generator=generator)
        noise = model(noisy.to(device)).cpu()
        error = (noisy - noise).clamp(0, 1) - clean
        values.append(float(-10 * error.square().mean().log10()))
    return sum(values) / len(values)
