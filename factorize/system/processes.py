"""Several processes of one job, as ``accelerate launch`` and ``torchrun`` start them.

Each runs the same program. The main one (rank 0) decides, writes and speaks; the others help it to
tune. One process alone needs nothing of this: then every function here gives back what it got.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function

from factorize.errors import FactorizeError, ProcessError

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # the others wait while the main one searches
LAST_WORDS = 30.0  # seconds


def launched() -> int:
    """Processes of the job that this one was started in."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def count() -> int:
    """Processes that work together now."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if count() > 1 else 0


def is_main() -> bool:
    """Whether this process decides, writes and speaks."""
    return rank() == 0 if count() > 1 else int(os.environ.get("RANK", "0")) == 0


def join(device: str) -> None:
    """Meet the other processes of the job; at once where there are none, or it is done."""
    if launched() > 1 and not dist.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=device == "cpu", timeout=PATIENCE)


def share(value: T) -> T:
    """What the main process has, in every process. It may hold tensors."""
    if count() == 1:
        return value
    held: list[Any] = [value if rank() == 0 else None]
    try:
        dist.broadcast_object_list(held, src=0)
    except RuntimeError as error:
        if is_lost(error):
            raise ProcessError(f"one of the {count()} processes has ended. Start again.") from error
        raise
    return held[0]


def first(function: Callable[[], T]) -> T:
    """What a function gives in the main process, in every process; raises what it raises there."""
    if count() == 1:
        return function()
    result: Any = None
    failure: BaseException | None = None
    if rank() == 0:
        try:
            result = function()
        except (Exception, KeyboardInterrupt) as error:
            failure = error
    ended = share(None if failure is None else _plain(failure))
    if failure is not None:
        raise failure
    if ended is not None:
        raise ended from ProcessError("so it ended in the main process")
    return share(result)


def _plain(error: BaseException) -> BaseException:
    """The same kind of error with its message alone: not every error can be sent."""
    if isinstance(error, (FactorizeError, KeyboardInterrupt)):
        return type(error)(*map(str, error.args))
    return RuntimeError(f"the main process failed: {type(error).__name__}: {error}")


def total(values: Tensor) -> Tensor:
    """The sum over all processes, without gradients."""
    if count() == 1:
        return values
    summed = values.detach().clone()
    dist.all_reduce(summed)
    return summed


def spread(model: nn.Module) -> None:
    """Give a model the main process's values, in place."""
    if count() > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.data, src=0)


def add_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum gradients over all processes, in place.

    In one go after the backward pass: torch's DistributedDataParallel, which sums on the way, does
    not take parameters that no loss reaches together with gradients gathered from several passes.
    """
    held = [p.grad for p in parameters if p.grad is not None]
    if count() == 1 or not held:
        return
    flat = total(torch.cat([gradient.flatten() for gradient in held]))
    for gradient, part in zip(held, flat.split([g.numel() for g in held]), strict=True):
        gradient.copy_(part.view_as(gradient))


class _Total(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return total(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return total(gradients[0].contiguous())


def differentiable_total(values: Tensor) -> Tensor:
    """The sum over all processes; its gradient is that of the losses of all of them."""
    result = _Total.apply(values.contiguous())
    assert isinstance(result, Tensor)
    return result


def is_lost(error: BaseException) -> bool:
    """Whether an error tells that another process does not answer any more."""
    if count() == 1 or not isinstance(error, RuntimeError):
        return False
    known = isinstance(error, (ProcessError, getattr(dist, "DistError", ProcessError)))
    return known or any(word in str(error) for word in ("gloo", "NCCL", "onnection"))


def is_own(error: BaseException) -> bool:
    """Whether it is the fault of this process, which helps, and no other one's."""
    others = isinstance(error, ProcessError) or isinstance(error.__cause__, ProcessError)
    return count() > 1 and not is_main() and not others


def give_way() -> bool:
    """Wait, in a process that helps, until the main one has said what they all met.

    The launcher ends all processes as soon as one has ended, be it in the middle of a word.

    Returns
    -------
    Whether the main process has ended.
    """
    if is_main():
        return False
    try:
        time.sleep(LAST_WORDS)
    except KeyboardInterrupt:
        return True
    return False


def part(size: int) -> slice:
    """Which of the samples of a batch this process takes."""
    workers, own = count(), rank()
    return slice(own * size // workers, (own + 1) * size // workers)
