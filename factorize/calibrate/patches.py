"""The patches that a convolution reads, gathered at all or at some of its output positions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from factorize.errors import UnsupportedLayerError
from factorize.types import ConvSpec


def sample(
    spec: ConvSpec, x: Tensor, per_image: int | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Input patches of a convolution at random output positions of each image.

    Parameters
    ----------
    x
        (N, C, H, W): what the layer is called with.
    per_image
        Positions of each image; all of them where it is None or more than there are.
    generator
        On the CPU, so that every device draws the same positions.

    Returns
    -------
    patches
        (n, D), D = C * k_h * k_w in the order of a row of the weight: for an ungrouped layer,
        ``patches @ weight.flatten(1).T`` is its output there, without the bias.
    index
        (n,): the positions, flat over (N, H', W'), image by image; see `outputs_at`.

    Raises
    ------
    UnsupportedLayerError
        The layer is not a conv2d.
    """
    pixels = padded(spec, x)
    index = positions(spec, pixels, per_image, generator)
    return patches_at(spec, pixels, index), index


def outputs_at(y: Tensor, index: Tensor) -> Tensor:
    """Rows (n, O) of the layer's output (N, O, H', W') at the positions of `sample`."""
    columns = y.flatten(2)  # (N, O, H' * W')
    return columns[index // columns.shape[2], :, index % columns.shape[2]]


def padded(spec: ConvSpec, x: Tensor) -> Tensor:
    """The layer's input after its padding, (N, H, W, C) contiguous: a pixel is one row to gather.

    Half precision becomes float32.
    """
    if spec.kind != "conv2d":
        raise UnsupportedLayerError(
            f"{spec.label}: only conv2d is calibrated, got {spec.kind}. Leave the layer as it is."
        )
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if spec.padding == "same":  # an odd total puts one more at the end of the axis
        totals = [d * (k - 1) for k, d in zip(spec.kernel, spec.dilation, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(p, p) for p in spec.padding]
    if any(map(any, sides)):
        mode = "constant" if spec.padding_mode == "zeros" else spec.padding_mode
        x = F.pad(x, (*sides[1], *sides[0]), mode=mode)
    return x.permute(0, 2, 3, 1).contiguous()


def positions(
    spec: ConvSpec, pixels: Tensor, per_image: int | None, generator: torch.Generator
) -> Tensor:
    """Random output positions for `padded` input, (n,), flat over (N, H', W'), none twice."""
    images, area = len(pixels), _area(spec, pixels)
    if per_image is None or per_image >= area:
        return torch.arange(images * area, device=pixels.device)
    keys = torch.rand(images, area, generator=generator)
    drawn = keys.topk(per_image, sorted=False).indices + area * torch.arange(images)[:, None]
    return drawn.flatten().to(pixels.device)


def patches_at(spec: ConvSpec, pixels: Tensor, index: Tensor) -> Tensor:
    """Patches (n, D) of `padded` input at output positions."""
    return windows_at(spec, pixels, index).transpose(1, 2).flatten(1)


def windows_at(spec: ConvSpec, pixels: Tensor, index: Tensor) -> Tensor:
    """Patches as (n, k_h * k_w, C): the channels of each kernel position."""
    height, width = pixels.shape[1:3]
    rows, columns = _output_size(spec, pixels)
    image, row, column = index // (rows * columns), index // columns % rows, index % columns
    corner = (image * height + row * spec.stride[0]) * width + column * spec.stride[1]
    down, right = (
        torch.arange(k, device=index.device) * d
        for k, d in zip(spec.kernel, spec.dilation, strict=True)
    )
    offset = (down[:, None] * width + right).flatten()  # (k_h * k_w,)
    picked = pixels.flatten(0, 2).index_select(0, (corner[:, None] + offset).flatten())
    return picked.view(len(index), len(offset), -1)


def _output_size(spec: ConvSpec, pixels: Tensor) -> tuple[int, int]:
    """(H', W') for padded input."""
    height, width = (
        (n - d * (k - 1) - 1) // s + 1
        for n, k, d, s in zip(
            pixels.shape[1:3], spec.kernel, spec.dilation, spec.stride, strict=True
        )
    )
    return height, width


def _area(spec: ConvSpec, pixels: Tensor) -> int:
    height, width = _output_size(spec, pixels)
    return height * width
