"""Which convolutions end a branch that is added to a tensor known before: a residual block's last.

Such a layer can make up for what the shortcut has lost as well: what counts is the sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from factorize.fit.lockstep import refusing
from factorize.tensor.call import call

_ADD = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


@dataclass(frozen=True)
class Shortcut:
    """What a convolution's output is added to.

    Attributes
    ----------
    source
        Name of the layer whose input is that tensor.
    norm
        The batch norm that the convolution's output passes before, or None.
    """

    source: str
    norm: _BatchNorm | None

    def wanted(self, output: Tensor, original: Tensor, compressed: Tensor) -> Tensor:
        """The output (N, O, *spatial) that brings the sum to the original's.

        Parameters
        ----------
        output
            Of the convolution in the original.
        original, compressed
            The shortcut in both networks.
        """
        lost = original - compressed
        if self.norm is None:
            return output + lost
        assert self.norm.running_var is not None
        gain = (self.norm.running_var + self.norm.eps).rsqrt()
        if self.norm.weight is not None:
            gain = gain * self.norm.weight
        # A channel that the norm all but closes has no say in the sum.
        heard = gain.abs() > 0.05 * gain.square().mean().sqrt()
        inverse = torch.where(heard, 1 / gain, 0.0)
        return output + lost * inverse.reshape(-1, *(1,) * (output.ndim - 2))


def trace(
    model: nn.Module, layers: Mapping[str, nn.Module], images: Any
) -> tuple[list[str], dict[str, Shortcut]]:
    """Names of the layers in the order of their calls, and shortcuts by the convolution's name.

    From one forward pass.

    Parameters
    ----------
    layers
        Convolutions and batch norms, by name; the source of a shortcut is one of them, called
        before the convolution.
    """
    seen = _Trace()
    hooks = [
        hook
        for name, module in layers.items()
        for hook in (
            module.register_forward_pre_hook(seen.entered(name), with_kwargs=True),
            module.register_forward_hook(seen.left(name)),
        )
    ]
    try:
        with refusing(model), torch.no_grad(), seen:
            call(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[str, Shortcut] = {}
    for name, added in seen.sums:
        norm = None
        if isinstance(layers.get(name), _BatchNorm):
            norm, name = layers[name], seen.after[name]
        source = seen.read_by.get(added, "")
        if not name or isinstance(layers[name], _BatchNorm) or not source:
            continue
        if seen.order.index(source) < seen.order.index(name):
            found[name] = Shortcut(source, norm)  # type: ignore[arg-type]
    return seen.order, found


class _Trace(TorchDispatchMode):
    """Knows tensors by identity: which layer made or first read them, and which were added."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []  # alive, so that no identity is used twice
        self.order: list[str] = []
        self.made_by: dict[int, str] = {}
        self.read_by: dict[int, str] = {}
        self.after: dict[str, str] = {}  # the layer whose output a layer reads
        self.sums: list[tuple[str, int]] = []  # the layer that made a term, the other term

    def entered(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["input"]
            self.kept.append(x)
            self.order.append(name)
            self.read_by.setdefault(id(x), name)
            self.after[name] = self.made_by.get(id(x), "")

        return hook

    def left(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.kept.append(output)
            self.made_by.setdefault(id(output), name)  # the first of a module's names

        return hook

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        plain = func in _ADD and not kwargs and isinstance(args[1], Tensor)
        if plain and args[0].shape == args[1].shape:
            self.kept.append(args)
            for one, other in (args, args[::-1]):
                self.sums.append((self.made_by.get(id(one), ""), id(other)))
        if args and made is args[0]:  # changed in place: no longer what a layer made
            self.made_by.pop(id(made), None)
        return made
