"""The original's outputs, which every compressed model is compared with."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from factorize.tensor.call import evaluating, model_on
from factorize.tensor.layout import forward

KEPT = 5e8
"""Bytes of the outputs that each step of a run is compared with."""


class Reference:
    """A model that others are compared with: its outputs for a batch are computed once.

    A batch is known by its bytes: whatever order a loader gives them in, none is taken for another.

    Parameters
    ----------
    model
        Runs in eval mode. One that is not on `device` is copied there.
    memory
        Bytes of outputs to keep; others are computed each time.
    """

    def __init__(self, model: nn.Module, device: torch.device | str, memory: float = 0.0) -> None:
        self.model, self.device, self.left = model, device, memory
        self._known: dict[bytes | None, Any] = {}

    def __call__(self, images: Any) -> Any:
        """The model's output for a batch that is on its device."""
        key = _digest(images)
        if key in self._known:
            return tree_map(_cloned, self._known[key])  # a user's loss may change it in place
        model = model_on(self.model, self.device)
        with evaluating(model):
            output = forward(model, images)
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        size = sum(leaf.numel() * leaf.element_size() for leaf in tensors)
        if key is not None and size <= self.left:
            self.left -= size
            # A copy: a view would hold on to more.
            self._known[key] = tree_map(_cloned, output)
        return output


def _digest(images: Any) -> bytes | None:
    """None where there is more in a batch than tensors and plain values."""
    leaves, structure = tree_flatten(images)
    digest = hashlib.blake2b(str(structure).encode(), digest_size=20)
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            plain = leaf.detach().cpu().contiguous().view(-1)
            digest.update(plain.view(torch.uint8).numpy().data)
        elif leaf is None or isinstance(leaf, (bool, int, float, str)):
            digest.update(repr(leaf).encode())
        else:
            return None
    return digest.digest()


def _cloned(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
