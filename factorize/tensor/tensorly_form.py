"""Factors as tensorly's own objects, float64 in its current backend. It loads when one is made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor


def cp_tensor(factors: Iterable[Tensor]) -> Any:
    """A ``CPTensor`` of factors (n1, R), (n2, R), ..., its weights ones."""
    from tensorly.cp_tensor import CPTensor

    return CPTensor((None, _arrays(factors)))


def tucker_tensor(core: Tensor, factors: Iterable[Tensor]) -> Any:
    """A ``TuckerTensor`` of a core (R1, R2, ...) and factors (n1, R1), (n2, R2), ...."""
    from tensorly.tucker_tensor import TuckerTensor

    return TuckerTensor((*_arrays([core]), _arrays(factors)))


def tt_tensor(cores: Iterable[Tensor]) -> Any:
    """A ``TTTensor`` of cores (1, n1, R1), (R1, n2, R2), ..., (R, n, 1)."""
    from tensorly.tt_tensor import TTTensor

    return TTTensor(_arrays(cores))


def _arrays(tensors: Iterable[Tensor]) -> list[Any]:
    import tensorly

    # Not `tensorly` itself: its float64 stays the one of the backend that it started with.
    backend: Any = tensorly.backend
    return [backend.tensor(one.numpy(), dtype=backend.float64) for one in tensors]
