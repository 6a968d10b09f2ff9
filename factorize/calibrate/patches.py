"""The patches that a convolution reads, gathered at all or at some of its output positions."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from factorize.spec import ConvSpec, Size


def sample(
    spec: ConvSpec, x: Tensor, per_image: int | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Input patches of a convolution at random output positions of each image.

    Parameters
    ----------
    x
        (N, C, *spatial), of a linear layer (N, ..., C): what the layer is called with.
    per_image
        Positions of each image; all of them where it is None or more than there are.
    generator
        On the CPU, so that every device draws the same positions.

    Returns
    -------
    patches
        (n, D), D = C * K in the order of a row of the weight (O, C, *kernel):
        ``patches @ weight.flatten(1).T`` is the output there, without the bias.
    index
        (n,): the positions, flat over (N, *spatial), image by image; see `outputs_at`.
    """
    pixels = padded(spec, x)
    index = positions(spec, pixels, per_image, generator)
    return patches_at(spec, pixels, index), index


def outputs_at(spec: ConvSpec, y: Tensor, index: Tensor) -> Tensor:
    """Rows (n, O) of the layer's output (N, O, *spatial) at the positions of `sample`."""
    if not spec.kernel:
        return y.reshape(-1, y.shape[-1])[index]
    columns = y.flatten(2)  # (N, O, positions)
    return columns[index // columns.shape[2], :, index % columns.shape[2]]


def padded(spec: ConvSpec, x: Tensor) -> Tensor:
    """The layer's input after its padding, (N, *spatial, C) contiguous: a pixel is a row to gather.

    A transposed convolution is an ordinary one, of stride 1, of its input spread out by the stride
    with zeros between. A linear layer's positions are one axis. Half precision becomes float32.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if not spec.kernel:
        return x.reshape(len(x), -1, x.shape[-1]).contiguous()
    totals = [d * (k - 1) for k, d in zip(spec.kernel, spec.dilation, strict=True)]
    if spec.padding == "same":  # an odd total puts one more at the end of the axis
        sides = [(total // 2, total - total // 2) for total in totals]
    elif spec.transposed:
        x = _spread(spec, x)
        sides = [
            (total - p, total - p + extra)
            for total, p, extra in zip(totals, spec.padding, spec.output_padding, strict=True)
        ]
    else:
        sides = [(p, p) for p in spec.padding]
    if any(map(any, sides)):
        mode = "constant" if spec.padding_mode == "zeros" else spec.padding_mode
        x = F.pad(x, [side for pair in reversed(sides) for side in pair], mode=mode)
    return x.movedim(1, -1).contiguous()


def _spread(spec: ConvSpec, x: Tensor) -> Tensor:
    """(N, C, *spatial) with stride - 1 zeros between neighbours."""
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], spec.stride, strict=True)]
    wide = x.new_zeros(*x.shape[:2], *sizes)
    wide[(..., *(slice(None, None, s) for s in spec.stride))] = x
    return wide


def positions(
    spec: ConvSpec, pixels: Tensor, per_image: int | None, generator: torch.Generator
) -> Tensor:
    """Random output positions for `padded` input, (n,), flat over (N, *spatial), none twice."""
    images, area = len(pixels), area_of(spec, pixels)
    if per_image is None or per_image >= area:
        return torch.arange(images * area, device=pixels.device)
    keys = torch.rand(images, area, generator=generator)
    drawn = keys.topk(per_image, sorted=False).indices + area * torch.arange(images)[:, None]
    return drawn.flatten().to(pixels.device)


def patches_at(spec: ConvSpec, pixels: Tensor, index: Tensor) -> Tensor:
    """Patches (n, D) of `padded` input at output positions."""
    return windows_at(spec, pixels, index).transpose(1, 2).flatten(1)


def windows_at(spec: ConvSpec, pixels: Tensor, index: Tensor) -> Tensor:
    """Patches as (n, K, C): the channels of each of the K kernel positions."""
    kernel, stride, dilation = _steps(spec)
    corner = torch.zeros_like(index)  # of each patch, flat over (N, *spatial)
    offset = torch.zeros(1, dtype=torch.int64, device=index.device)  # (K,), from the corner
    rest, scale = index, 1
    for axis in reversed(range(len(kernel))):
        outputs = _output_size(spec, pixels)[axis]
        corner = corner + rest % outputs * stride[axis] * scale
        rest = rest // outputs
        taps = torch.arange(kernel[axis], device=index.device) * dilation[axis] * scale
        offset = (taps[:, None] + offset).flatten()
        scale *= pixels.shape[axis + 1]
    if spec.transposed:  # the kernel runs against the input
        offset = offset.flip(0)
    corner = corner + rest * scale
    picked = pixels.flatten(0, -2).index_select(0, (corner[:, None] + offset).flatten())
    return picked.view(len(index), len(offset), -1)


def area_of(spec: ConvSpec, pixels: Tensor) -> int:
    """Output positions of an image, for padded input."""
    return prod(_output_size(spec, pixels))


def _steps(spec: ConvSpec) -> tuple[Size, Size, Size]:
    """Kernel, stride and dilation over the axes of padded input."""
    if not spec.kernel:
        return (1,), (1,), (1,)
    stride = (1,) * len(spec.kernel) if spec.transposed else spec.stride
    return spec.kernel, stride, spec.dilation


def _output_size(spec: ConvSpec, pixels: Tensor) -> Size:
    """Spatial output size for padded input."""
    return tuple(
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(pixels.shape[1:-1], *_steps(spec), strict=True)
    )
