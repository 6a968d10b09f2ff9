"""The layers that `compare_peers.py` compares on: a trained net's, and synthetic ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from factorize import find
from factorize.graph import effective_weight
from factorize.models.load_model import load_model
from factorize.spec import ConvSpec

ROOT = Path(__file__).parents[1]
SAMPLES_PER_IMAGE = 10  # as AIMET's channel pruning takes them
SYNTHETIC = ((64, 64, 14, 1), (64, 128, 14, 2), (128, 128, 8, 1))  # channels, size, stride


@dataclass(frozen=True)
class Layer:
    """One convolution without bias, with the inputs that it really gets.

    Attributes
    ----------
    group
        What it is a layer of.
    weight
        (O, I, k_h, k_w), float32.
    samples
        (n, I, k_h, k_w): patches of its inputs on the calibration images.
    inputs
        (N, I, H, W): its inputs on the held-out images.
    outputs
        (N, O, H', W'): what it makes of them.
    """

    group: str
    spec: ConvSpec
    weight: Tensor
    samples: Tensor
    inputs: Tensor
    outputs: Tensor

    def run(self, kernel: Tensor) -> Tensor:
        """The layer with another kernel (O, I, k_h, k_w), on the held-out inputs."""
        padding: Any = self.spec.padding
        return F.conv2d(self.inputs, kernel, None, self.spec.stride, padding)

    def output_error(self, outputs: Tensor) -> float:
        """``||y' - y|| / ||y - mean(y)||``, the mean that of each channel."""
        exact = self.outputs.double()
        centred = exact - exact.mean((0, 2, 3), keepdim=True)
        return float((outputs.double() - exact).norm() / centred.norm())

    def weight_error(self, kernel: Tensor) -> float:
        """``||W' - W|| / ||W||``."""
        exact = self.weight.double()
        return float((kernel.double() - exact).norm() / exact.norm())


def resnet20(
    checkpoint: Path, images: Path, calibration: int, held_out: int, seed: int
) -> Iterator[Layer]:
    """ResNet-20 on CIFAR-10; calibration images come first in the file, the held-out ones next."""
    arch = f"{ROOT / 'experiments' / 'cifar10' / 'resnet.py'}:resnet20"
    model = load_model(checkpoint, arch=arch).model
    pixels = torch.from_numpy(np.load(images)["images"][: calibration + held_out])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((pixels / 255 - mean) / std).movedim(-1, 1).contiguous()
    return _layers("resnet20", model, x[:calibration], x[calibration:], seed)


def synthetic(calibration: int, held_out: int, seed: int) -> Iterator[Layer]:
    """Kernels with decaying spectra, on rectified inputs that are smooth and correlated."""
    for inputs, outputs, size, stride in SYNTHETIC:
        torch.manual_seed(seed)
        conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        kernel = torch.randn_like(conv.weight)
        for axis, extent in enumerate(kernel.shape):
            kernel = (kernel.movedim(axis, -1) @ _decaying(extent).T).movedim(-1, axis)
        conv.weight.data = kernel / kernel.norm()
        coarse = torch.randn(calibration + held_out, inputs, size // 2, size // 2)
        fields = F.interpolate(coarse, size, mode="bilinear")
        fields += 0.3 * torch.randn_like(fields)
        x = torch.einsum("oi,nihw->nohw", _decaying(inputs), fields).relu()
        model = nn.Sequential()
        model.add_module(f"{inputs}-{outputs}-{size}-{stride}", conv)
        yield from _layers("synthetic", model, x[:calibration], x[calibration:], seed)


def _decaying(extent: int) -> Tensor:
    """Random orthogonal directions, the j-th scaled by 1 / sqrt(j)."""
    return torch.linalg.qr(torch.randn(extent, extent)).Q * torch.arange(1, extent + 1) ** -0.5


def _layers(
    group: str, model: nn.Module, calibration: Tensor, held_out: Tensor, seed: int
) -> Iterator[Layer]:
    """Every k x k convolution of a model but those that read an image."""
    generator = torch.Generator().manual_seed(seed)
    caught: list[Tensor] = []
    for site in find(model, held_out[:1]):
        spec = site.spec
        if spec.in_channels <= 4 or max(spec.kernel) == 1:
            continue
        module = model.get_submodule(spec.name)
        hook = module.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        samples = []
        with torch.no_grad():
            for batch in calibration.split(100):
                model(batch)
                samples.append(_patches(caught.pop(), spec, generator))
            model(held_out)
            inputs = caught.pop()
            hook.remove()
            outputs = module(inputs)
        weight = effective_weight(module).detach().clone()
        yield Layer(group, spec, weight, torch.cat(samples), inputs, outputs)


def _patches(x: Tensor, spec: ConvSpec, generator: torch.Generator) -> Tensor:
    """(N * SAMPLES_PER_IMAGE, I, k_h, k_w): input patches at random positions of each image."""
    padding: Any = spec.padding
    patches = F.unfold(x, spec.kernel, 1, padding, spec.stride)  # (N, I k_h k_w, positions)
    shape = (len(x), 1, SAMPLES_PER_IMAGE)
    places = torch.randint(patches.shape[2], shape, generator=generator)
    taken = patches.gather(2, places.expand(-1, patches.shape[1], -1))
    return taken.transpose(1, 2).reshape(-1, spec.in_channels, *spec.kernel)
