"""What a user has put on a layer, and its memory format, handed on to what takes its place."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from factorize.graph.spec_of import KINDS, weight_hooks

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
)
_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def carry_(layer: nn.Module, other: nn.Module, *, leaving: bool) -> nn.Module:
    """Give another module the layer's hooks and the attributes that a user has set on it.

    Hooks by which torch computes the weight are left out, as the weight is computed; and backward
    hooks of the old kind, which see the last operation of several alone.

    Parameters
    ----------
    leaving
        Whether the layer is left behind: then the handles of who registered the hooks remove those
        of the other module, and no longer the layer's.

    Returns
    -------
    The other module.
    """
    vars(other).update({name: vars(layer)[name] for name in extras(layer)})
    for kind in _HOOKS:
        hooks = vars(layer)[kind]  # a handle knows this very dictionary
        same = OrderedDict(hooks)
        vars(layer)[kind], vars(other)[kind] = (same, hooks) if leaving else (hooks, same)
    vars(other)["_is_full_backward_hook"] = layer._is_full_backward_hook
    own = weight_hooks(layer)
    for key in [key for key, hook in layer._forward_pre_hooks.items() if hook in own]:
        del other._forward_pre_hooks[key]
    if layer._is_full_backward_hook is False:
        other._backward_hooks, other._is_full_backward_hook = OrderedDict(), None
    return other


def extras(layer: nn.Module) -> list[str]:
    """Names of attributes that are not torch's own; parameters, buffers, submodules are not any."""
    return [name for name in vars(layer) if name not in _torchs_own()]


def hooks_of(layer: nn.Module) -> tuple[int, int]:
    """How many hooks of a user's `carry_` hands on, and how many it drops."""
    calls = len(layer._forward_hooks) + len(layer._forward_pre_hooks) - len(weight_hooks(layer))
    old = len(layer._backward_hooks) if layer._is_full_backward_hook is False else 0
    return calls + len(layer._backward_pre_hooks) + len(layer._backward_hooks) - old, old


def layout_of(*weights: Tensor) -> torch.memory_format:
    """Channels last where one of them is laid out so, and not also the usual way."""
    for weight in weights:
        layout = _LAYOUTS.get(weight.ndim)
        if layout and not weight.is_contiguous() and weight.is_contiguous(memory_format=layout):
            return layout
    return torch.contiguous_format


@cache
def _torchs_own() -> frozenset[str]:
    """Attributes of layers and chains as torch makes them."""
    made: list[Any] = [nn.Sequential(), *(cls(1, 1, 1, device="meta") for cls in KINDS)]
    names = {name for one in made for name in (*vars(one), *one._parameters)}
    return frozenset(names | {"_compiled_call_impl"})
