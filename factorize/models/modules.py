"""Pickled modules: out of their wrappers, and checked for what the rest relies on."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from factorize.errors import ModelLoadError
from factorize.models.model_file import check_tensors
from factorize.system.imports import brief
from factorize.tensor.wrappers import unwrap

HALF = frozenset({torch.float16, torch.bfloat16})


def computes_in(tensors: Iterable[Tensor]) -> tuple[torch.dtype, list[str]]:
    """The floating type for a model of these tensors, and what to say about it.

    The widest of theirs, and never half precision: it is fitted and measured in float32.
    """
    saved = sorted({t.dtype for t in tensors if t.is_floating_point()}, key=str)
    half = not HALF.isdisjoint(saved)
    dtype = functools.reduce(torch.promote_types, [torch.float32, *saved])
    names = " and ".join(map(_short, saved))
    if half:
        return dtype, [f"saved in {names}: converted to {_short(dtype)}"]
    if len(saved) > 1:
        return dtype, [f"saved in {names}: loaded as {_short(dtype)}"]
    return dtype, [f"saved in {names}"] if dtype != torch.float32 else []


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def sound(module: nn.Module, path: Path) -> nn.Module:
    """Take a pickled module out of its wrappers, and check all that the rest relies on.

    Raises
    ------
    ModelLoadError
        It cannot be factorized, its tensors cannot be weights, or it does not work at all.
    """
    # A crafted or very old pickle may lack any attribute, so any call may fail in any way.
    try:
        module = unwrap(module)
        _check_modules(module, path)
        module.cpu().eval()
        tensors = dict(module.named_parameters()) | module.state_dict()
        check_tensors({key: t for key, t in tensors.items() if isinstance(t, Tensor)}, path)
    except ModelLoadError:
        raise
    except Exception as failure:
        raise ModelLoadError(
            f"{path}: its pickled module does not work with this version of torch "
            f"({brief(failure)}). Save model.state_dict() instead."
        ) from failure
    return module


def _check_modules(module: nn.Module, path: Path) -> None:
    """Refuse modules that cannot be replaced, and convolutions unlike their own weights.

    Raises
    ------
    ModelLoadError
        A module is TorchScript or quantized, or a convolution's attributes, which a crafted file
        may set to anything, do not describe its weight.
    """
    for name, part in module.named_modules():
        label = name or type(part).__name__
        if isinstance(part, torch.jit.ScriptModule):
            raise ModelLoadError(f"{path}: {label} is TorchScript: save the nn.Module.")
        if ".quantized." in type(part).__module__:
            raise ModelLoadError(
                f"{path}: {label} is a quantized {type(part).__name__}. "
                "Start from the model before quantization."
            )
        if isinstance(part, _ConvNd) and not is_lazy(part.weight):
            _check_convolution(part, f"{path}: {label}")


def _check_convolution(conv: _ConvNd, place: str) -> None:
    if not (isinstance(conv.groups, int) and conv.groups > 0):
        raise ModelLoadError(f"{place}: groups must be 1 or more, got {conv.groups!r}.")
    outer, inner = conv.out_channels, conv.in_channels
    if conv.transposed:
        outer, inner = inner, outer
    described = (outer, inner // conv.groups, *conv.kernel_size)
    if tuple(conv.weight.shape) != described:
        raise ModelLoadError(
            f"{place}: its weight must be {described}, as its attributes say, got "
            f"{tuple(conv.weight.shape)}. Save model.state_dict() and pass --arch."
        )
