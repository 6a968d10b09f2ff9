"""One forward pass of two networks at once, stopped at each layer until that layer is fitted.

Images go through the model twice in one batch: the first half as the original treats them, the
second half through what has been fitted so far. All else in a network in eval mode treats each
image by itself, so the two halves are the two networks. Each batch's forward pass is a coroutine
(a greenlet), which stands still at the layer whose fit is next: however the model is written, the
whole net is fitted in about one pass over the images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import greenlet
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from factorize.errors import DataError
from factorize.fit.alive import Alive
from factorize.tensor.call import batch_size, call, rows_of, twice

Decision = Callable[[Tensor], Tensor] | None
"""What a layer does to the second half of its input from now on; None: what it always did."""


@dataclass(frozen=True)
class Arrival:
    """A batch at a layer: the layer's input in both networks, the original's output.

    `kept` are the inputs of earlier layers, original first, compressed second.
    """

    batch: int
    original: Tensor
    compressed: Tensor
    output: Tensor
    kept: dict[str, tuple[Tensor, Tensor]]


@contextmanager
def refusing(model: nn.Module) -> Iterator[None]:
    """Turn what a model raises into a DataError: it must take images, as many as come."""
    try:
        yield
    except (DataError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise DataError(
            f"{type(model).__name__}: the model must take batches of images of any "
            f"length, got {type(error).__name__}: {' '.join(str(error).split())[:200]}. "
            "Use --fit outputs."
        ) from error


def _modes(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """Contexts with the modes of the thread as they are now: gradients, inference, autocast."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    casts = {kind: torch.is_autocast_enabled(kind) for kind in ("cpu", device)}

    def entered() -> ExitStack:
        stack = ExitStack()
        stack.enter_context(torch.inference_mode(inference))  # sets that of gradients too
        stack.enter_context(torch.set_grad_enabled(grad))
        for kind, enabled in casts.items():
            stack.enter_context(torch.autocast(kind, enabled=enabled))
        return stack

    return entered


class _Run:
    """One batch's forward pass, which can stand still in the middle of it."""

    def __init__(self, index: int, forward: Callable[[], Any], device: str) -> None:
        self.index, self.visits = index, 0
        self.arrival: Arrival | None = None  # None: it has ended
        self.name = ""
        self.output: Any = None
        self.kept: dict[str, tuple[Tensor, Tensor]] = {}
        self.compressed = torch.empty(0)  # the second half, while a layer sees the first
        self._flow = greenlet(forward)
        self._outside = _modes(device)

    def resume(self) -> None:
        """Run to the next undecided layer, or to the end."""
        self.arrival = None
        output = self._flow.switch()
        if self._flow.dead:
            self.output = output

    def pause(self, name: str, arrival: Arrival) -> None:
        """Called in the pass: stand still there until it is resumed."""
        self.name, self.arrival = name, arrival
        assert self._flow.parent is not None
        with self._outside():  # what the model has switched on around its layers stays in there
            self._flow.parent.switch()

    def cancel(self) -> None:
        """Unwind the pass, wherever it is."""
        self.arrival = None
        self._flow.throw()


class Lockstep:
    """Takes batches from layer to layer through a model; a context manager.

    ``while (name := lockstep.next()) is not None``: look at `arrivals`, then `decide`.

    Parameters
    ----------
    model
        In eval mode. Not changed, but for hooks while this is open.
    layers
        Modules to stop at, by name, each time that they are called with one tensor.
    batches
        Images (n, C, H, W), or whatever else the model takes, see `tensor.call`.
    keep
        Names of layers whose input is kept, and of the layer after whose decision it is dropped.
    memory
        Bytes that paused batches may hold. At a layer where they need more, those beyond it start
        anew for the next one, which takes longer.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        batches: Sequence[Any],
        memory: float,
        *,
        keep: Mapping[str, str] | None = None,
    ) -> None:
        self.keep = dict(keep or {})
        self.model, self.batches, self.layers, self.memory = model, batches, layers, memory
        self.decisions: list[Decision] = []
        self._held: list[int] = []  # bytes per image, paused at each of the stops
        self._paused: dict[int, _Run] = {}  # by the batch
        self._running: _Run | None = None
        self._hooks: list[Any] = []

    def __enter__(self) -> Lockstep:
        try:
            self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for run in self._paused.values():
            run.cancel()
        for hook in self._hooks:
            hook.remove()

    @property
    def output(self) -> Any:
        """The model's output for the first batch, twice, when it has come to the end."""
        return self._paused[0].output

    def next(self) -> str | None:
        """The name of the next layer that the batches come to, None at the end."""
        first = self._paused[0]
        self._resume(first)
        return first.name if first.arrival else None

    def arrivals(self) -> Iterator[Arrival]:
        """Each batch at that layer; to be called once there."""
        name, stop = self._paused[0].name, len(self.decisions)
        most = max(self._held[stop : stop + 2])  # what they hold here, and on the way to the next
        left = self.memory
        for index, batch in enumerate(self.batches):
            run = self._paused.pop(index, None)
            left -= most * batch_size(batch)
            try:
                run = run or self._start(index)
                if index:
                    self._resume(run)
                if run.arrival is None or run.name != name:
                    raise DataError(
                        f"{name}: every batch must take the same way through the model, and batch "
                        f"{index} came to {run.name or 'its end'}. Use --fit outputs."
                    )
                yield run.arrival
            finally:
                if run is not None:
                    if index == 0 or left >= 0:
                        self._paused[index] = run
                    else:
                        run.cancel()

    def decide(self, then: Decision) -> None:
        """What the layer does from here on, in this call of it."""
        self.decisions.append(then)
        self._forget(self._paused[0].name)

    def _forget(self, last: str) -> None:
        """Drop the inputs that were kept until this layer."""
        for name in [name for name, until in self.keep.items() if until == last]:
            del self.keep[name]
            for run in self._paused.values():
                run.kept.pop(name, None)

    def _open(self) -> None:
        names: dict[int, str] = {}
        for name, module in self.layers.items():
            if id(module) not in names:
                names[id(module)] = name
                # Next to the module: what a user has put there is around them.
                before, after = self._split(name), self._hook(name)
                self._hooks += [
                    module.register_forward_pre_hook(before, with_kwargs=True),
                    module.register_forward_hook(after, with_kwargs=True, prepend=True),
                ]
        self._held = self._held_per_image()
        self._paused[0] = self._start(0)

    def _start(self, index: int) -> _Run:
        return self._run(index, self.batches[index])

    def _run(self, index: int, images: Any, *modes: TorchDispatchMode) -> _Run:
        def forward() -> Any:
            with torch.no_grad(), ExitStack() as stack:
                for mode in modes:
                    stack.enter_context(mode)
                return call(self.model, twice(images))

        first = next(leaf for leaf in tree_leaves(images) if isinstance(leaf, Tensor))
        return _Run(index, forward, first.device.type)

    def _resume(self, run: _Run) -> None:
        self._running = run
        with refusing(self.model):
            run.resume()
            self._running = None

    def _split(self, name: str) -> Any:
        """Give a layer the original's half alone: what becomes of the other is decided."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            run = self._running
            if run is None:  # called by whoever looks at the arrivals, or decided
                return None
            x = args[0] if args else kwargs["input"]
            unbatched = isinstance(module, _ConvNd) and x.ndim < module.weight.ndim
            if unbatched or len(x) % 2:  # its first axis is not that of the images
                raise DataError(
                    f"{name}: must be called with whole batches (N, C, ...) to be fitted in "
                    f"sequence, and was with {tuple(x.shape)}. Use --fit outputs."
                )
            original, run.compressed = x.chunk(2)
            return ((original, *args[1:]), kwargs) if args else ((), kwargs | {"input": original})

        return hook

    def _hook(self, name: str) -> Any:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> Any:
            run = self._running
            if run is None:
                return None
            original, compressed = args[0] if args else kwargs["input"], run.compressed
            if name in self.keep:
                run.kept[name] = (original, compressed)
            visit, run.visits = run.visits, run.visits + 1
            if visit == len(self.decisions):
                run.pause(name, Arrival(run.index, original, compressed, output, run.kept))
            then = self.decisions[visit] or module.forward
            self._running = None
            output = torch.cat((output, then(compressed)))
            self._running = run
            return output

        return hook

    def _held_per_image(self) -> list[int]:
        """Bytes that an image holds, paused at each of the layers in turn."""
        found, alive, keep = [], Alive(), dict(self.keep)
        run = self._paused[0] = self._run(0, rows_of(self.batches[0], slice(1)), alive)
        self._resume(run)
        while run.arrival is not None:
            found.append(alive.bytes())
            self.decide(None)
            self._resume(run)
        self.decisions.clear()
        self.keep = keep
        return found
