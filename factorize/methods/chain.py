"""Chains of convolutions: their specs, and the one kernel that each is equal to."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from factorize.spec import ConvSpec, Size


def stage(
    spec: ConvSpec, axes: tuple[int, ...], in_channels: int, out_channels: int, groups: int = 1
) -> ConvSpec:
    """One stage that takes over the kernel, stride, padding and dilation of some axes.

    The other axes get extent 1. A stage that pads keeps the padding mode; none has a bias yet. Of a
    transposed convolution, a stage without axes is an ordinary 1x1.

    Parameters
    ----------
    in_channels, out_channels, groups
        Of the chain of one group of the layer: the stage has as many of it as the layer has groups.
    """

    def pick(values: tuple[int, ...], neutral: int) -> tuple[int, ...]:
        return tuple(v if axis in axes else neutral for axis, v in enumerate(values))

    padding = spec.padding
    if padding == "same":
        padding = "same" if axes else (0,) * len(spec.kernel)
    else:
        padding = pick(padding, 0)
    return replace(
        spec,
        kind=spec.kind if axes else spec.kind.replace("conv_transpose", "conv"),
        in_channels=in_channels * spec.groups,
        out_channels=out_channels * spec.groups,
        kernel=pick(spec.kernel, 1),
        stride=pick(spec.stride, 1),
        dilation=pick(spec.dilation, 1),
        padding=padding,
        padding_mode=spec.padding_mode if padding == "same" or any(padding) else "zeros",
        groups=groups * spec.groups,
        output_padding=pick(spec.output_padding, 0) if axes else (),
        bias=False,
    )


def shuffle(spec: ConvSpec, channels: int, groups: int) -> ConvSpec:
    """A stage that moves channel (g, c) of (groups, channels / groups) to (c, g)."""
    return replace(stage(spec, (), channels, channels, groups), kind="channel_shuffle", kernel=())


def link(spec: ConvSpec, *stages: ConvSpec) -> tuple[ConvSpec, ...]:
    """Number the stages, hand the sizes on from one to the next, put the bias on the last."""
    linked: list[ConvSpec] = []
    sizes = spec.input_sizes
    for index, one in enumerate(stages):
        last = index == len(stages) - 1
        one = replace(
            one, name=f"{spec.name}.{index}".lstrip("."), input_sizes=sizes,
            bias=spec.bias and last,
        )  # fmt: skip
        linked.append(one)
        sizes = one.output_sizes
    return tuple(linked)


def shaped(stages: tuple[ConvSpec, ...], weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Weights as their stages hold them."""
    return tuple(
        w.reshape(stage.kernel_shape).contiguous() for w, stage in zip(weights, stages, strict=True)
    )


def chain_kernel(stages: tuple[ConvSpec, ...], weights: tuple[Tensor, ...]) -> Tensor:
    """The one kernel that a chain of convolutions is equal to.

    On each axis at most one stage has an extent above 1, so the extents multiply. The chain is
    folded from an end that is not grouped, where there is one: a grouped weight in between then
    costs its own size, not that of the dense weight it stands for.

    Parameters
    ----------
    weights
        Each of its stage's ``kernel_shape``.

    Returns
    -------
    (O, I, *kernel)
    """
    if stages[-1].groups == 1 and stages[-1].kind != "channel_shuffle":
        kernel = weights[-1]  # (O, C, *k)
        for spec, weight in zip(stages[-2::-1], weights[-2::-1], strict=True):
            groups = spec.groups
            if spec.kind == "channel_shuffle":
                kernel = kernel.unflatten(1, (-1, groups)).transpose(1, 2).flatten(1, 2)
                continue
            outer = kernel.reshape(len(kernel), groups, kernel.shape[1] // groups, -1)
            inner = weight.reshape(groups, -1, weight.shape[1], prod(spec.kernel))
            product = torch.einsum("ogck,gcim->ogikm", outer, inner)
            kernel = _merged(product, len(kernel), spec.in_channels, kernel.shape[2:], spec.kernel)
        return kernel
    first = stages[0]
    kernel = torch.eye(first.in_channels, dtype=weights[0].dtype, device=weights[0].device)
    kernel = kernel.reshape(*kernel.shape, *(1,) * len(first.kernel))  # (C, I, *k)
    if first.groups == 1:
        kernel, stages, weights = weights[0], stages[1:], weights[1:]
    for spec, weight in zip(stages, weights, strict=True):
        groups = spec.groups
        if spec.kind == "channel_shuffle":
            kernel = kernel.unflatten(0, (groups, -1)).transpose(0, 1).flatten(0, 1)
            continue
        inner = kernel.reshape(groups, len(kernel) // groups, kernel.shape[1], -1)
        outer = weight.reshape(groups, -1, weight.shape[1], prod(spec.kernel))
        product = torch.einsum("gcik,gocm->goikm", inner, outer)
        kernel = _merged(product, spec.out_channels, kernel.shape[1], kernel.shape[2:], spec.kernel)
    return kernel


def _merged(product: Tensor, outputs: int, inputs: int, one: Size, two: Size) -> Tensor:
    """(O, I, prod(k), prod(k')) with axes of extents k k': one of each pair of extents is 1."""
    axes = len(one)
    product = product.reshape(outputs, inputs, *one, *two)
    order = [axis for pair in zip(range(axes), range(axes, 2 * axes), strict=True) for axis in pair]
    extents = [a * b for a, b in zip(one, two, strict=True)]
    return product.permute(0, 1, *(2 + axis for axis in order)).reshape(outputs, inputs, *extents)
