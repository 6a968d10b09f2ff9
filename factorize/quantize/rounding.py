"""Weights rounded to integers so that the layer's outputs, not the weights, change least.

Frantar et al., GPTQ (ICLR 2023), arXiv 2210.17323: columns are rounded one after the other, and
what each rounding does to the outputs is made up for by the columns that are not rounded yet. The
target is that of Li et al., GPTAQ (2025), arXiv 2504.02692: the outputs of the float net, for the
inputs that the rounded net gives this layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DAMPING = 0.01  # of the mean second moment
_SMALLEST = 2.0**-60  # of a scale; its product with an input's is a normal float32 number
_BLOCK = 128  # columns, after which the others are brought up to date


def compensated(weight: Tensor, apart: Tensor, second: Tensor, ridge: float) -> Tensor:
    """The weight that, for the rounded net's inputs, comes closest to the float net's outputs.

    Parameters
    ----------
    weight
        (G, O, D): groups, outputs, patch length.
    apart
        (G, D, D): E[(x - x') x'^T], of patches x of the float net and x' of the rounded one.
    second
        (G, D, D): E[x' x'^T].
    ridge
        Pulls towards the weight itself, as a share of the mean second moment.
    """
    return weight + torch.cholesky_solve((weight @ apart).mT, _root(second, ridge)).mT


def scales_of(weight: Tensor, largest: int) -> Tensor:
    """The step of each output channel, (G, O), float32 numbers: its largest weight is the last."""
    most = weight.abs().amax(-1) / largest
    return most.clamp_min(_SMALLEST).float().to(weight.dtype)


def rounded_codes(weight: Tensor, scales: Tensor, second: Tensor, largest: int) -> Tensor:
    """Codes (G, O, D) within ``-largest..largest``, for weights ``codes * scales``.

    Parameters
    ----------
    scales
        (G, O).
    second
        (G, D, D): the second moments of the layer's inputs, about their mean where the bias is
        corrected afterwards.
    """
    order = second.diagonal(dim1=-2, dim2=-1).argsort(-1, descending=True)  # (G, D)
    groups = torch.arange(len(order))[:, None]
    left = weight.gather(-1, order[:, None].expand_as(weight))
    second = second[groups[..., None], order[..., None], order[:, None]]
    inverse = torch.cholesky_inverse(_root(second, _DAMPING))
    factor = torch.linalg.cholesky(inverse, upper=True)  # (G, D, D)
    codes = torch.empty_like(left)
    for start in range(0, left.shape[-1], _BLOCK):
        some = slice(start, min(start + _BLOCK, left.shape[-1]))
        block, within = left[..., some].clone(), factor[:, some, some]
        errors = torch.empty_like(block)
        for j in range(block.shape[-1]):
            column = block[..., j]
            code = (column / scales).round().clamp(-largest, largest)
            codes[..., start + j] = code
            error = (column - code * scales) / within[:, j, j, None]
            block[..., j:] -= error[..., None] * within[:, None, j, j:]
            errors[..., j] = error
        left[..., some.stop :] -= errors @ factor[:, some, some.stop :]
    return torch.empty_like(codes).scatter_(-1, order[:, None].expand_as(codes), codes)


def nearest_codes(weight: Tensor, scales: Tensor, largest: int) -> Tensor:
    """The same by rounding each weight to the nearest."""
    return (weight / scales[..., None]).round().clamp(-largest, largest)


def _root(second: Tensor, share: float) -> Tensor:
    """The Cholesky factor, with so much of the mean second moment on the diagonal, or more.

    Sums of float32 numbers may be off by more where all inputs are nearly the same.
    """
    diagonal = second.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.abs().mean(-1, keepdim=True)
    while True:
        more = (share * mean + torch.finfo(torch.float32).tiny).expand_as(diagonal)
        root, failed = torch.linalg.cholesky_ex(second + torch.diag_embed(more))
        if not failed.any():
            return root
        share *= 10
