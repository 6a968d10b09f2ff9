"""Calls of operators that are layers, as torch's own modules, and the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import skip_init

from factorize.tensor.twins import BatchNorm

ATEN = torch.ops.aten
LAYERS = {
    ATEN.conv1d.default, ATEN.conv1d.padding, ATEN.conv2d.default, ATEN.conv2d.padding,
    ATEN.conv3d.default, ATEN.conv3d.padding, ATEN.conv_transpose1d.default,
    ATEN.conv_transpose2d.input, ATEN.conv_transpose3d.input, ATEN.convolution.default,
    ATEN.linear.default,
}  # fmt: skip
NORMS = {ATEN.batch_norm.default, ATEN._native_batch_norm_legit_no_training.default}
_TRANSPOSED = {
    1: ATEN.conv_transpose1d.default, 2: ATEN.conv_transpose2d.input, 3: ATEN.conv_transpose3d.input
}  # fmt: skip
_PLAIN = {1: ATEN.conv1d, 2: ATEN.conv2d, 3: ATEN.conv3d}


def arguments(node: fx.Node) -> dict[str, Any]:
    """A call's arguments by name, defaults filled in."""
    given: dict[str, Any] = {}
    for index, one in enumerate(node.target._schema.arguments):  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
        if index < len(node.args):
            given[one.name] = node.args[index]
        else:
            given[one.name] = node.kwargs.get(one.name, one.default_value)
    return given


def layer_of(given: Mapping[str, Any], shape: torch.Size, bias: bool) -> nn.Module | None:
    """The module of a call, without values; None where torch has none.

    Parameters
    ----------
    shape, bias
        Of the weight; whether there is a bias.
    """
    if "stride" not in given:
        return skip_init(nn.Linear, shape[1], shape[0], bias=bias) if len(shape) == 2 else None
    axes = len(shape) - 2
    if not 1 <= axes <= 3:
        return None
    groups, transposed = given["groups"], given.get("transposed", "output_padding" in given)
    channels = (shape[0], shape[1] * groups) if transposed else (shape[1] * groups, shape[0])
    padding = given["padding"]
    more: dict[str, Any] = {}
    if transposed:
        more["output_padding"] = _each(given["output_padding"], axes)
    cls: Any = getattr(nn, f"Conv{'Transpose' * transposed}{axes}d")
    try:
        return skip_init(
            cls, *channels, tuple(shape[2:]), _each(given["stride"], axes),
            padding if isinstance(padding, str) else _each(padding, axes),
            dilation=_each(given["dilation"], axes), groups=groups, bias=bias, **more,
        )  # fmt: skip
    except ValueError:  # torch wants channels that the groups divide
        return None


def norm_of(given: Mapping[str, Any], features: int) -> nn.Module:
    """The batch norm of a call, without values."""
    return BatchNorm(features, given["eps"], given["momentum"], affine=given["weight"] is not None)


def call_of(module: Any) -> tuple[Any, tuple[Any, ...]]:
    """The operator of a stage of a chain, and its arguments behind input, weight and bias."""
    if isinstance(module, nn.ChannelShuffle):
        return ATEN.channel_shuffle.default, (module.groups,)
    if isinstance(module, nn.Linear):
        return ATEN.linear.default, ()
    axes, stride = module.weight.ndim - 2, list(module.stride)
    if module.transposed:
        return _TRANSPOSED[axes], (
            stride, list(module.padding), list(module.output_padding), module.groups,
            list(module.dilation),
        )  # fmt: skip
    kind = "padding" if isinstance(module.padding, str) else "default"
    padding = module.padding if kind == "padding" else list(module.padding)
    return getattr(_PLAIN[axes], kind), (stride, padding, list(module.dilation), module.groups)


def _each(value: Any, axes: int) -> tuple[int, ...]:
    """One number for each axis, as torch reads one for all."""
    numbers = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return numbers * axes if len(numbers) == 1 else numbers
