"""What a module tells of the convolution that it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from factorize.errors import UnsupportedLayerError
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


def weight_hooks(module: nn.Module) -> list[Any]:
    """Pre-forward hooks by which torch computes the weight (weight_norm, spectral_norm, prune)."""
    hooks = module._forward_pre_hooks.values()
    return [hook for hook in hooks if type(hook).__module__.startswith("torch.nn.utils")]


def axes_of(module: Any) -> int:
    """How many spatial axes a convolution has."""
    kind = next((kind for cls, kind in KINDS.items() if isinstance(module, cls)), None)
    if kind is None:  # torch's own of another kind: quantized, or a user's beside Conv1d to 3d
        return len(object.__getattribute__(module, "kernel_size"))
    return 0 if kind == "linear" else int(kind[-2])


def spec_of(module: Any, name: str, input_sizes: tuple[Size, ...] = ()) -> ConvSpec:
    """All of a convolution, or of a linear layer as a convolution without axes, as it computes.

    Channels and kernel are those of the weight, which may have been cut by hand since: the
    attributes that tell of them are not what torch computes by. One number for all axes is as good
    as one for each.

    Raises
    ------
    UnsupportedLayerError
        An attribute is nothing that torch computes by.
    """
    kind = next((KINDS[cls] for cls in type(module).__mro__ if cls in KINDS), type(module).__name__)
    shape = _weight_shape(module)
    if kind == "linear":
        outputs, inputs = shape or (module.out_features, module.in_features)
        return ConvSpec(
            name, kind, inputs, outputs, (), (), (), (), bias=module.bias is not None,
            input_sizes=input_sizes,
        )  # fmt: skip
    label, axes = name or type(module).__name__, axes_of(module)
    kernel = shape[2:] if shape else _each(module, "kernel_size", axes, label)
    (groups,) = _each(module, "groups", 1, label)
    inputs, outputs = module.in_channels, module.out_channels
    if shape and module.transposed:
        inputs, outputs = shape[0], shape[1] * groups
    elif shape:
        inputs, outputs = shape[1] * groups, shape[0]
    bias = module.bias() if is_quantized(module) else module.bias
    padding: Size | Literal["same"] = "same"
    if module.padding != "same":
        padding = (0,) * axes
        if module.padding != "valid":
            padding = _each(module, "padding", axes, label)
    return ConvSpec(
        name=name,
        kind=kind,
        in_channels=inputs,
        out_channels=outputs,
        kernel=kernel,
        stride=_each(module, "stride", axes, label),
        padding=padding,
        dilation=_each(module, "dilation", axes, label),
        groups=groups,
        padding_mode=module.padding_mode,
        bias=bias is not None,
        output_padding=_each(module, "output_padding", axes, label) if module.transposed else (),
        input_sizes=input_sizes,
    )


def _weight_shape(module: Any) -> Size | None:
    """Of the weight, where there is one that nothing computes first."""
    weight = module._parameters.get("weight", vars(module).get("weight"))
    return None if not isinstance(weight, Tensor) or is_lazy(weight) else tuple(weight.shape)


def _each(module: Any, attribute: str, axes: int, label: str) -> Size:
    """An attribute as one integer per axis, as torch reads it: a single one is for all axes."""
    value = getattr(module, attribute)
    try:
        numbers = tuple(map(int, value if isinstance(value, Iterable) else (value,)))
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) == 1:
        numbers *= axes
    if len(numbers) != axes:
        raise UnsupportedLayerError(
            f"{label}: its {attribute} must be a number or {axes} of them, got {value!r}. Correct "
            "it in the model."
        )
    return numbers
