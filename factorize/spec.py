"""What a convolution is: all of its attributes, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Literal

Size = tuple[int, ...]
"""Spatial size, one entry per axis: (H, W) for a 2-D convolution."""

Rank = tuple[int, ...]
"""One entry per free dimension of the method: (R,) for an SVD, (R1, R2) for Tucker-2."""


@dataclass(frozen=True)
class ConvSpec:
    """All attributes of one convolution or linear layer, and the input sizes it is called with.

    Attributes
    ----------
    name
        Dotted module name; ``""`` for a model that is itself a convolution.
    kind
        ``conv1d``, ``conv2d``, ``conv3d``, ``conv_transpose1d`` and so on; ``linear``, which has no
        spatial axes: its kernel is ``()``, its input sizes those between batch and channels. In
        chains also ``channel_shuffle``, which has no weight.
    padding
        Per axis and side, or ``"same"`` (which may pad one more at the end of an axis).
    input_sizes
        Spatial input size of each call in one forward pass; empty when never called.
    """

    name: str
    kind: str
    in_channels: int
    out_channels: int
    kernel: Size
    stride: Size
    padding: Size | Literal["same"]
    dilation: Size
    groups: int = 1
    padding_mode: str = "zeros"
    bias: bool = True
    output_padding: Size = ()
    input_sizes: tuple[Size, ...] = ()

    @property
    def label(self) -> str:
        """The name as shown to people."""
        if not self.name:
            return "(the model itself)"
        return self.name if self.name.isprintable() else repr(self.name)

    @property
    def transposed(self) -> bool:
        """Whether this is a transposed convolution."""
        return self.kind.startswith("conv_transpose")

    @property
    def axes(self) -> tuple[int, ...]:
        """The spatial axes."""
        return tuple(range(len(self.kernel)))

    @property
    def group_inputs(self) -> int:
        """Channels that each group reads."""
        return self.in_channels // self.groups

    @property
    def group_outputs(self) -> int:
        """Channels that each group puts out."""
        return self.out_channels // self.groups

    @property
    def one_group(self) -> ConvSpec:
        """The convolution that each group is by itself."""
        return replace(
            self, in_channels=self.group_inputs, out_channels=self.group_outputs, groups=1
        )

    @property
    def kernel_shape(self) -> Size:
        """(O, I/groups, *kernel), transposed or not; (0,) where there is no weight."""
        if self.kind == "channel_shuffle":
            return (0,)
        return (self.out_channels, self.group_inputs, *self.kernel)

    @property
    def weight_shape(self) -> Size:
        """Shape of the module's weight: `kernel_shape`, transposed (I, O/groups, *kernel)."""
        if self.transposed:
            return (self.in_channels, self.group_outputs, *self.kernel)
        return self.kernel_shape

    @property
    def params(self) -> int:
        """Weights and biases."""
        return prod(self.weight_shape) + (self.out_channels if self.bias else 0)

    def output_size(self, input_size: Size) -> Size:
        """Spatial output size for a spatial input size (torch's own formulas)."""
        if self.padding == "same" or not self.kernel:
            return input_size
        if self.transposed:
            return tuple(
                (n - 1) * s - 2 * p + d * (k - 1) + extra + 1
                for n, k, s, p, d, extra in zip(
                    input_size, self.kernel, self.stride, self.padding, self.dilation,
                    self.output_padding or (0,) * len(self.kernel), strict=True,
                )
            )  # fmt: skip
        return tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                input_size, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )

    @property
    def output_sizes(self) -> tuple[Size, ...]:
        """Spatial output size of each call."""
        return tuple(self.output_size(size) for size in self.input_sizes)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per sample over all calls; the bias is not counted."""
        sizes = self.input_sizes if self.transposed else self.output_sizes
        return sum(prod(size) for size in sizes) * prod(self.weight_shape)

    def difference(self, planned: ConvSpec) -> str | None:
        """How a planned layer differs from this one, its input sizes left out; None if not."""
        for key, ours in vars(self).items():
            theirs = getattr(planned, key)
            if key != "input_sizes" and ours != theirs:
                return f"{key} is {theirs!r} in the plan and {ours!r} in the model"
        return None
