"""What a forward pass holds: the tensors that it has made, and not dropped."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Alive(TorchDispatchMode):
    """Knows the tensors that were made while it was on and are still held."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[Tensor]] = []

    def bytes(self) -> int:
        """What they hold, storage shared by several counted once."""
        tensors = [tensor for ref in self.made if (tensor := ref()) is not None]
        self.made = [weakref.ref(tensor) for tensor in tensors]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.made += [weakref.ref(leaf) for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        return made
