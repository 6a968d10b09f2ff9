"""What runtimes share: the clock, the CPU's threads, and an example repeated to a batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_map

from factorize.errors import DataError
from factorize.measure.runtimes.base import Target
from factorize.tensor.call import batch_size


def wall_ms(call: Callable[[], Any]) -> float:
    """Milliseconds of one call, by the clock."""
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


@contextmanager
def threads_of(target: Target) -> Iterator[None]:
    """Torch with the target's threads, and then with those it had before."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(target.threads or before)
        yield
    finally:
        torch.set_num_threads(before)


def batched(example_input: Any, batch: int) -> Any:
    """The example with its one sample repeated; as it is where it is a batch already."""
    if batch == batch_size(example_input):
        return example_input
    if batch_size(example_input) != 1:
        raise DataError(
            f"--batch {batch}: the example input must be of one sample or of that many, got "
            f"{batch_size(example_input)}."
        )
    return tree_map(
        lambda v: v.repeat(batch, *(1,) * (v.ndim - 1)) if isinstance(v, torch.Tensor) else v,
        example_input,
    )
