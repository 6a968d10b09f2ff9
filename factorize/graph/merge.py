"""Several convolutions that each see their own channels, as one grouped convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils import skip_init

from factorize.errors import UnsupportedLayerError
from factorize.graph.find import forbidden
from factorize.graph.rewrite import effective_weight, swapped
from factorize.graph.spec_of import KINDS, is_convolution, spec_of


def merge_parallel(convs: Sequence[nn.Module]) -> nn.Module:
    """One convolution C with ``C(cat(x1, x2, ...)) = cat(C1(x1), C2(x2), ...)``, exactly.

    In as many groups as the given ones have together: block-diagonal weights without the zeros.

    Parameters
    ----------
    convs
        Two or more, alike in all but their weights: kernel, stride, padding, dilation, groups,
        channels, padding mode, bias, dtype and device. Weight parametrisations are folded.

    Returns
    -------
    A convolution of the same class, with new parameters; mode and requires_grad are those of the
    first.

    Raises
    ------
    UnsupportedLayerError
        There are fewer than two, one is no convolution or not like the first.
    """
    if len(convs) < 2 or not all(map(is_convolution, convs)):
        kinds = ", ".join(type(conv).__name__ for conv in convs) or "nothing"
        raise UnsupportedLayerError(
            f"merge_parallel: takes two convolutions or more, got {kinds}. Linear layers have no "
            "grouped form."
        )
    specs = [spec_of(conv, "") for conv in convs]
    for index, (conv, spec) in enumerate(zip(convs, specs, strict=True)):
        if reason := forbidden(conv):
            raise UnsupportedLayerError(f"merge_parallel: convolution {index}: {reason}.")
        if difference := specs[0].difference(spec):
            raise UnsupportedLayerError(
                f"merge_parallel: convolution {index} must be like the first one, and its "
                f"{difference.replace(' in the plan', '').replace('in the model', 'in the first')}."
            )
    weights = [effective_weight(conv) for conv in convs]
    if len({(weight.dtype, weight.device) for weight in weights}) > 1:
        raise UnsupportedLayerError(
            "merge_parallel: all must have one dtype and device, got "
            f"{', '.join(f'{w.dtype} on {w.device}' for w in weights)}. Use .to() first."
        )
    first: Any = convs[0]
    count, spec = len(convs), specs[0]
    whole = replace(
        spec, in_channels=count * spec.in_channels, out_channels=count * spec.out_channels,
        groups=count * spec.groups,
    )  # fmt: skip
    plain: Any = next(cls for cls, kind in KINDS.items() if kind == spec.kind)
    transposed = {"output_padding": spec.output_padding} if spec.transposed else {}
    merged: Any = skip_init(
        plain, whole.in_channels, whole.out_channels, whole.kernel, whole.stride, whole.padding,
        dilation=whole.dilation, groups=whole.groups, bias=whole.bias,
        padding_mode=whole.padding_mode, device=weights[0].device, dtype=weights[0].dtype,
        **transposed,
    )  # fmt: skip
    with torch.no_grad():
        weight = torch.cat(weights)
        merged.weight.copy_(swapped(weight, whole) if whole.transposed else weight)
        if whole.bias:
            merged.bias.copy_(torch.cat([conv.bias for conv in convs]))  # type: ignore[arg-type]
    trainable = all(parameter.requires_grad for parameter in first.parameters())
    return merged.requires_grad_(trainable).train(first.training)
