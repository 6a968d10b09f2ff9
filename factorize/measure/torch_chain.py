"""Convolutions as torch modules with made-up weights, for timing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from factorize.spec import ConvSpec

_CONVS: dict[str, Any] = {
    "conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d,
    "conv_transpose1d": nn.ConvTranspose1d, "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}  # fmt: skip


def chain_module(stages: Sequence[ConvSpec]) -> nn.Module:
    """A chain as it runs in a net that is done."""
    return nn.Sequential(*map(conv, stages)).eval().requires_grad_(False)


def conv(spec: ConvSpec) -> nn.Module:
    """A layer of that shape."""
    if spec.kind == "channel_shuffle":
        return nn.ChannelShuffle(spec.groups)
    if not spec.kernel:
        return nn.Linear(spec.in_channels, spec.out_channels, spec.bias)
    more = {"output_padding": spec.output_padding} if spec.transposed else {}
    return _CONVS[spec.kind](
        spec.in_channels, spec.out_channels, spec.kernel, spec.stride, spec.padding,
        dilation=spec.dilation, groups=spec.groups, bias=spec.bias, padding_mode=spec.padding_mode,
        **more,
    )  # fmt: skip
