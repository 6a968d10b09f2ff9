"""Nodes that are layers, as torch's own modules: what can be replaced by a chain, and batch norms.

What a module cannot express of a node, padding of two different sides, stands before or behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from factorize.onnx_graph.walk import attributes
from factorize.tensor.twins import BatchNorm

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class SamePads:
    """``auto_pad`` of a strided convolution: as much as the size of its input asks for."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    upper: bool

    def __call__(self, size: Sequence[int]) -> list[int]:
        """Return padding for an input (H, W), as `F.pad` takes it."""
        pads: list[int] = []
        axes = zip(size, self.kernel, self.stride, self.dilation, strict=True)
        for n, k, s, d in reversed(list(axes)):
            total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            less, more = total // 2, total - total // 2
            pads += [less, more] if self.upper else [more, less]
        return pads


@dataclass(frozen=True)
class Layer:
    """How a module stands for a node.

    Attributes
    ----------
    tensors
        By parameter or buffer: the input of the node that it is, and whether it is transposed.
    before, behind
        What its input is padded by and its output cut by, as `F.pad` takes it.
    """

    tensors: dict[str, tuple[int, bool]]
    before: tuple[int, ...] | SamePads = ()
    behind: tuple[int, ...] = ()

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        """Call what is in the module's place."""
        pads = self.before
        if isinstance(pads, SamePads):
            pads = pads(x.shape[2:])
        if any(pads):
            x = F.pad(x, tuple(pads))
        y = module(x)
        return F.pad(y, self.behind) if any(self.behind) else y


Values = Sequence[Any]
"""What is known of a node's inputs: arrays of constants, None where it is computed or left out."""

Made = tuple[nn.Module, Layer]


def layer_of(node: Any, values: Values) -> Made | None:
    """The node as a module; None where no module of torch computes what it does."""
    made = _MAKERS.get(node.op_type)
    return made(node, values) if made and node.domain in ("", "ai.onnx") else None


def same_pads(
    auto_pad: str, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> SamePads:
    """What ``SAME_UPPER`` or ``SAME_LOWER`` pads."""
    return SamePads(tuple(kernel), tuple(stride), tuple(dilation), auto_pad == "SAME_UPPER")


def conv_attributes(given: dict[str, Any], axes: int) -> dict[str, Any]:
    """Strides, dilations, group and pads of a convolution, defaults filled in."""
    found = {
        "strides": [1] * axes, "dilations": [1] * axes, "group": 1, "pads": [0] * 2 * axes,
        "auto_pad": "NOTSET", "output_padding": [0] * axes, **given,
    }  # fmt: skip
    if found["auto_pad"] == "VALID":
        found["pads"] = [0] * 2 * axes
    return found


def _conv(node: Any, values: Values) -> Made | None:
    weight, bias = values[1], values[2] if len(values) > 2 else None
    axes = weight.ndim - 2
    transposed = node.op_type == "ConvTranspose"
    if not 1 <= axes <= 3 or (bias is None and len(node.input) > 2 and node.input[2]):
        return None
    given = conv_attributes(attributes(node), axes)
    stride, dilation = tuple(given["strides"]), tuple(given["dilations"])
    kernel, same = weight.shape[2:], given["auto_pad"].startswith("SAME")
    before, after = tuple(given["pads"][:axes]), tuple(given["pads"][axes:])
    front: Any = ()
    behind: tuple[int, ...] = ()
    if transposed and (same or "output_shape" in given):
        return None
    if same and set(stride) == {1}:
        pads = same_pads(given["auto_pad"], kernel, stride, dilation)((1,) * axes)
        before, after = tuple(pads[::2][::-1]), tuple(pads[1::2][::-1])
    elif same:
        front = same_pads(given["auto_pad"], kernel, stride, dilation)
        before = after = (0,) * axes
    if before != after or min(before) < 0:
        flat = [pad for pair in reversed(list(zip(before, after, strict=True))) for pad in pair]
        front, behind = ((), tuple(-pad for pad in flat)) if transposed else (tuple(flat), ())
        before = (0,) * axes
    channels = (weight.shape[0], weight.shape[1] * given["group"])
    more: dict[str, Any] = {}
    if transposed:
        more["output_padding"] = tuple(given["output_padding"])
    else:
        channels = channels[::-1]
    cls: Any = getattr(nn, f"Conv{'Transpose' * transposed}{axes}d")
    try:
        module = skip_init(
            cls, *channels, kernel, stride, before, dilation=dilation, groups=given["group"],
            bias=bias is not None, dtype=_dtype(weight), **more,
        )  # fmt: skip
    except ValueError:  # torch wants channels that the groups divide
        return None
    tensors = {"weight": (1, False)} | ({} if bias is None else {"bias": (2, False)})
    return _filled(module, Layer(tensors, front, behind), values)


def _gemm(node: Any, values: Values) -> Made | None:
    given = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0, **attributes(node)}
    weight, bias = values[1], values[2] if len(values) > 2 else None
    if given["alpha"] != 1 or given["transA"] or (bias is None and len(node.input) > 2):
        return None
    outputs, inputs = weight.shape if given["transB"] else weight.shape[::-1]
    if bias is not None and (given["beta"] != 1 or bias.shape not in ((outputs,), (1, outputs))):
        return None
    return _linear(values, inputs, outputs, not given["transB"], bias is not None)


def _matmul(node: Any, values: Values) -> Made | None:
    if values[1].ndim != 2:
        return None
    inputs, outputs = values[1].shape
    return _linear(values, inputs, outputs, True, False)


def _linear(values: Values, inputs: int, outputs: int, swap: bool, bias: bool) -> Made:
    module = skip_init(nn.Linear, inputs, outputs, bias=bias, dtype=_dtype(values[1]))
    tensors = {"weight": (1, swap)} | ({"bias": (2, False)} if bias else {})
    return _filled(module, Layer(tensors), values)


def _batch_norm(node: Any, values: Values) -> Made | None:
    given = {"epsilon": 1e-5, "momentum": 0.9, "training_mode": 0, **attributes(node)}
    arrays = values[1:5]
    if (
        len(arrays) < 4
        or any(array is None or array.ndim != 1 for array in arrays)
        or given["training_mode"]
    ):
        return None
    module = BatchNorm(
        len(arrays[0]), given["epsilon"], 1 - given["momentum"], dtype=_dtype(arrays[0])
    )
    names = ("weight", "bias", "running_mean", "running_var")
    return _filled(module, Layer({n: (i, False) for i, n in enumerate(names, 1)}), values)


_MAKERS = {
    "Conv": _conv, "ConvTranspose": _conv, "Gemm": _gemm, "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
}  # fmt: skip


def _dtype(array: np.ndarray) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype


def _filled(module: nn.Module, layer: Layer, values: Values) -> Made:
    """Give the module the node's values."""
    for name, (index, swap) in layer.tensors.items():
        array = np.array(values[index].T if swap else values[index])
        own = getattr(module, name)
        own.data = torch.from_numpy(array).reshape(own.shape)
    return module, layer
