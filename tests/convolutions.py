"""Convolutions of every kind for the tests, as far as a method supports them."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from factorize import methods
from factorize.graph.spec import KINDS, spec_of
from factorize.spec import ConvSpec

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MODULES: dict[str, Any] = {kind: cls for cls, kind in KINDS.items()}


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
    kind, pointwise, grouped = draw(st.sampled_from(shapes(method)))
    dtype = draw(st.sampled_from(DTYPES))
    axes, groups = axes_of(kind), draw(st.integers(2, 3)) if grouped else 1
    inputs, outputs = (groups * draw(st.integers(1, 6 // groups)) for _ in range(2))
    bias = draw(st.booleans())
    torch.manual_seed(draw(st.integers(0, 1000)))
    if kind == "linear":
        between = draw(st.lists(st.integers(1, 3), max_size=2))
        layer: nn.Module = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
        return layer, torch.randn(2, *between, inputs, dtype=torch.float64)

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    most = {1: 9, 2: 7, 3: 4}[axes]
    kernel = (1,) * axes if pointwise else each(1, most)
    dilation, stride, options = each(1, 3 if axes < 3 else 2), each(1, 3), dict[str, Any]()
    if "transpose" in kind:
        padding = each(0, 2)
        options["output_padding"] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )
        # What is left of the output after its padding is cut off must not be nothing.
        size = [2 * p + draw(st.integers(1, 4)) for p in padding]
    else:
        options["padding_mode"] = draw(
            st.sampled_from(["zeros", "reflect", "replicate", "circular"])
        )
        padding = draw(st.one_of(st.sampled_from(["same", "valid"]), st.just(each(0, 3))))
        if padding == "same":
            stride = (1,) * axes
        # Large enough for the dilated kernel, and for reflect and circular padding.
        size = [d * (k - 1) + 1 + draw(st.integers(3, 6 if axes < 3 else 4))
                for k, d in zip(kernel, dilation, strict=True)]  # fmt: skip
    layer = MODULES[kind](
        inputs, outputs, kernel, stride, padding, dilation=dilation, groups=groups, bias=bias,
        dtype=dtype, **options,
    )  # fmt: skip
    return layer, torch.randn(2, inputs, *size, dtype=torch.float64)


def sizes_of(layer: nn.Module, x: torch.Tensor) -> tuple[int, ...]:
    """The spatial size that a layer sees of an input."""
    return tuple(x.shape[1:-1]) if isinstance(layer, nn.Linear) else tuple(x.shape[2:])


__all__ = ["KINDS", "layers", "shapes", "sizes_of", "spec", "spec_of", "square", "typical"]
