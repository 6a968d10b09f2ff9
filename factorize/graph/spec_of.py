"""What a module tells of the convolution that it is."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from factorize.spec import ConvSpec, Size

KINDS: dict[type[nn.Module], str] = {
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
    nn.Linear: "linear",
}


def is_convolution(module: nn.Module) -> bool:
    """Whether this is a convolution of torch's, quantized ones included."""
    return isinstance(module, _ConvNd) or (is_quantized(module) and hasattr(module, "kernel_size"))


def is_quantized(module: object) -> bool:
    """Whether this is a layer whose weights are packed integers."""
    return ".quantized" in type(module).__module__ and type(module).__module__.startswith("torch.")


def spec_of(module: Any, name: str, input_sizes: tuple[Size, ...] = ()) -> ConvSpec:
    """All attributes of a convolution, or of a linear layer as a convolution without axes."""
    quantized = is_quantized(module)
    kind = next((KINDS[cls] for cls in type(module).__mro__ if cls in KINDS), type(module).__name__)
    if kind == "linear":
        return ConvSpec(
            name, kind, module.in_features, module.out_features, (), (), (), (),
            bias=module.bias is not None, input_sizes=input_sizes,
        )  # fmt: skip
    padding = module.padding
    if padding == "valid":
        padding = (0,) * len(module.kernel_size)
    bias = module.bias() if quantized else module.bias
    return ConvSpec(
        name=name,
        kind=kind,
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        kernel=tuple(module.kernel_size),
        stride=tuple(module.stride),
        padding="same" if padding == "same" else tuple(int(p) for p in padding),
        dilation=tuple(module.dilation),
        groups=module.groups,
        padding_mode=module.padding_mode,
        bias=bias is not None,
        output_padding=tuple(module.output_padding) if module.transposed else (),
        input_sizes=input_sizes,
    )
