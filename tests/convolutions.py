"""Convolutions of every kind for the tests, as far as a method supports them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from factorize import methods
from factorize.graph.spec_of import KINDS, spec_of
from factorize.spec import ConvSpec

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
MODULES: dict[str, Any] = {kind: cls for cls, kind in KINDS.items()}


class Host(nn.Module):
    """A model with one layer; a plain linear model is not one with convolutions."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.unused = layer, nn.Conv1d(1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.layer.parameters()).dtype


def axes_of(kind: str) -> int:
    return 0 if kind == "linear" else int(kind.removesuffix("d")[-1])


def spec(kind: str, extent: int, *, inputs: int = 4, outputs: int = 4, groups: int = 1) -> ConvSpec:
    ones = (1,) * axes_of(kind)
    return ConvSpec(
        "c", kind, inputs, outputs, tuple(extent for _ in ones), ones,
        tuple(extent // 2 for _ in ones), ones, groups,
        output_padding=tuple(0 for _ in ones) if "transpose" in kind else (),
    )  # fmt: skip


def shapes(method: str) -> list[tuple[str, bool, bool]]:
    """(kind, whether the kernel is 1 everywhere, whether it is grouped) that a method supports."""
    found = []
    for kind in MODULES:
        for pointwise in (False, True):
            for grouped in (False, True):
                if kind == "linear" and (grouped or not pointwise):
                    continue
                one = spec(kind, 1 if pointwise else 3, groups=2 if grouped else 1)
                if methods.get(method).supports(one) is None:
                    found.append((kind, pointwise, grouped))
    return found


def square() -> list[str]:
    """The methods for an ordinary 3x3 convolution."""
    return [name for name in methods.names() if not methods.get(name).supports(spec("conv2d", 3))]


def typical(method: str, inputs: int, outputs: int) -> ConvSpec:
    """The spec of a layer that a method is made for: 2-D with a kernel where it takes that."""
    wanted = [("conv2d", 3), ("conv2d", 1), ("conv3d", 3)]
    found = (spec(kind, extent, inputs=inputs, outputs=outputs) for kind, extent in wanted)
    return next(one for one in found if methods.get(method).supports(one) is None)


@st.composite
def layers(draw: st.DrawFn, method: str) -> tuple[nn.Module, torch.Tensor]:
    """A layer of any kind and attributes that a method supports, and a float64 input it takes."""
    # From one number: of many, Hypothesis varies a few at a time, and small runs miss whole kinds.
    random = Random(draw(st.integers(0, 2**64)))
    pick, between = random.choice, random.randint
    possible = shapes(method)
    kind = pick(sorted({kind for kind, _, _ in possible}))
    _, pointwise, grouped = pick([one for one in possible if one[0] == kind])
    dtype, bias = pick(DTYPES), pick([True, False])
    axes, groups = axes_of(kind), between(2, 3) if grouped else 1
    inputs, outputs = (groups * between(1, 6 // groups) for _ in range(2))
    torch.manual_seed(between(0, 1000))
    if kind == "linear":
        tokens = [between(1, 3) for _ in range(between(0, 2))]
        layer: nn.Module = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
        return dressed(layer, pick), torch.randn(2, *tokens, inputs, dtype=torch.float64)

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(between(low, high) for _ in range(axes))

    most = {1: 9, 2: 7, 3: 4}[axes]
    kernel = (1,) * axes if pointwise else each(1, most)
    dilation, stride, options = each(1, 3 if axes < 3 else 2), each(1, 3), dict[str, Any]()
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if "transpose" in kind:
        padding = each(0, 2)
        options["output_padding"] = tuple(
            between(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)
        )
        # What is left of the output after its padding is cut off must not be nothing.
        least = [2 * p + 1 for p in padding]
    else:
        mode = options["padding_mode"] = pick(PADDING_MODES)
        padding = pick(["same", "valid", each(0, 3)])
        if padding == "same":
            stride = (1,) * axes
        sides = {"same": [(r + 1) // 2 for r in reach], "valid": [0] * axes}.get(padding, padding)
        # The padded map holds the dilated kernel; others than zeros are read from the map itself.
        own = {"reflect": 1, "circular": 0}.get(mode)
        least = [
            max(1, r + 1 - (r if padding == "same" else 2 * p), 0 if own is None else p + own)
            for r, p in zip(reach, sides, strict=True)
        ]
        if axes == 3 and dtype.itemsize == 2:  # torch itself crashes on maps below the kernel
            least = [max(n, r + 1) for n, r in zip(least, reach, strict=True)]
    size = [n + between(0, 6 if axes < 3 else 4) for n in least]
    layer = MODULES[kind](
        inputs, outputs, kernel, stride, padding, dilation=dilation, groups=groups, bias=bias,
        dtype=dtype, **options,
    )  # fmt: skip
    return dressed(layer, pick), torch.randn(2, inputs, *size, dtype=torch.float64)


def dressed(layer: Any, pick: Callable[[Any], Any]) -> nn.Module:
    """The layer as users may have it: in either mode, frozen, its weight laid out in any way."""
    layer.train(pick([True, False]))
    for parameter in layer.parameters():
        parameter.requires_grad_(pick([True, False]))
    match pick(["plain", "channels last", "strided", "weight norm"]):
        case "channels last" if layer.weight.ndim == 4:
            layer.to(memory_format=torch.channels_last)
        case "strided":  # every second number of a storage
            weight = layer.weight
            apart = torch.stack((weight.detach(), weight.detach()), -1)[..., 0]
            layer.weight = nn.Parameter(apart, weight.requires_grad)
        case "weight norm":
            parametrizations.weight_norm(layer)
    return layer


def attributes(layer: Any, x: torch.Tensor) -> set[str]:
    """What is special of a layer from `layers`, to tell what was drawn."""
    spec, weight = spec_of(layer, ""), layer.weight
    grouped = spec.groups > 1
    depthwise = grouped and spec.groups == spec.in_channels
    trainable = {p.requires_grad for p in layer.parameters()}
    normed = parametrize.is_parametrized(layer)
    padded = spec.padding != "same" and any(spec.padding)
    found = {
        f"{weight.dtype}": True,
        "bias": spec.bias,
        "no bias": not spec.bias,
        "train": layer.training,
        "eval": not layer.training,
        "trainable": True in trainable,
        "frozen": False in trainable,
        "weight norm": normed,
        "strided": weight.stride(-1) == 2,
        "grouped": grouped,
        "depthwise": depthwise,
        "depthwise with a multiplier": depthwise and spec.out_channels > spec.in_channels,
        "kernel of 1": bool(spec.kernel) and set(spec.kernel) == {1},
        "even kernel": any(k % 2 == 0 for k in spec.kernel),
        "oblong kernel": len(set(spec.kernel)) > 1,
        "stride": any(s > 1 for s in spec.stride),
        "dilation": any(d > 1 for d in spec.dilation),
        "padding": padded,
        "same": spec.padding == "same",
        "same, even kernel": spec.padding == "same" and any(k % 2 == 0 for k in spec.kernel),
        "output padding": any(spec.output_padding),
        "kernel above map": any(
            k > n for k, n in zip(spec.kernel, sizes_of(layer, x), strict=bool(spec.kernel))
        ),
        f"{spec.padding_mode} padding": padded or spec.padding == "same",
        "channels last": weight.ndim == 4 and not weight.is_contiguous() and not normed
        and weight.is_contiguous(memory_format=torch.channels_last),
        "tokens": not spec.kernel and x.ndim > 2,
    }  # fmt: skip
    return {name for name, present in found.items() if present}


def sizes_of(layer: nn.Module, x: torch.Tensor) -> tuple[int, ...]:
    """The spatial size that a layer sees of an input."""
    return tuple(x.shape[1:-1]) if isinstance(layer, nn.Linear) else tuple(x.shape[2:])


__all__ = [
    "KINDS", "attributes", "layers", "shapes", "sizes_of", "spec", "spec_of", "square", "typical",
]  # fmt: skip
