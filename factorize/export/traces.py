"""A model as programs traced by ``torch.export``, which ONNX and .pt2 files are made of."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from factorize.errors import ExportError
from factorize.export.free_axes import AXES, FreeAxes, FreeAxis, Places, free_axes, resized
from factorize.export.plain_call import PlainCall, plain_call
from factorize.system.quiet import quiet
from factorize.tensor.call import evaluating
from factorize.tensor.wrappers import prepared

T = TypeVar("T")

STEPS = (1, 2, 4, 8, 16, 32, 64)
_PATIENCE = 60.0  # seconds; attention in windows takes many minutes with free axes
_CLOSE = 1e-2  # of a program and its model, in any dtype: only whether a size is computed right


@dataclass(frozen=True)
class Traced:
    """A program, the model that it was traced from, and its free axes."""

    called: PlainCall
    program: ExportedProgram
    axes: FreeAxes

    def inputs(self) -> Iterator[list[Tensor]]:
        """Random inputs to compare at: batch 1 and 3, and another size, where these are free."""
        generator = torch.Generator().manual_seed(0)
        free, second = "batch" in self.axes.names, self.axes.second()
        changes = [{"batch": 1}, {"batch": 3}] if free else [{}]
        changes += [{**changes[0], **second}] if second else []
        for changed in changes:
            shapes = self.axes.sizes(changed)
            yield resized(list(self.called.tensors.values()), shapes, generator)


class Traces:
    """The programs of a model, the one with most free axes first; each is traced when asked for.

    Several kinds of files are made of the same ones.
    """

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        self._made: list[Traced] = []
        self._failure: ExportError | None = None
        self._source = _traced(model, example_input)

    def __iter__(self) -> Iterator[Traced]:
        """Give the programs that there are, then trace the next."""
        at = 0
        while True:
            if at == len(self._made):
                try:
                    made = next(self._source, None)
                except ExportError as error:
                    self._failure = error
                    raise
                if made is None:
                    break
                self._made.append(made)
            yield self._made[at]
            at += 1
        if self._failure is not None:
            raise self._failure

    def first(self, write: Callable[[Traced], T]) -> T:
        """What a function gives for the first program that it raises no ExportError for."""
        failure = None
        for traced in self:
            try:
                return write(traced)
            except ExportError as error:  # one with fewer free axes may do
                failure = error
        assert failure is not None
        raise failure


def _traced(model: nn.Module, example_input: Any) -> Iterator[Traced]:
    """Trace with all axes free, then the batch alone; where it is fixed all others, then none.

    Of those that are meant to be free torch fixes the ones that cannot be.
    """
    called = plain_call(prepared(model)[0], example_input)
    tensors = list(called.tensors.values())
    batch = frozenset((i, 0) for i, v in enumerate(tensors) if v.shape[:1] == (called.samples,))
    space = frozenset(
        (i, axis)
        for i, _ in batch
        for axis in range(2, 2 + len(AXES.get(tensors[i].ndim, ())))
        if tensors[i].shape[axis] > 1  # torch takes one for a constant
    )
    seen: set[Any] = set()
    failure = None
    for wanted in dict.fromkeys((batch | space, batch, space, frozenset())):
        try:
            found = _trace(called, wanted, batch)
        except Exception as error:  # torch.export has no error of its own for it
            failure = error
            continue
        if found.axes.places() not in seen:
            seen.add(found.axes.places())
            yield found
        if wanted == batch:
            return
    if not seen:
        assert failure is not None
        raise ExportError(
            f"export: torch.export must be able to trace the model, got {first_line(failure)}. "
            "Make its control flow independent of its data."
        ) from failure


def _trace(called: PlainCall, wanted: Places, batch: Places) -> Traced:
    """Trace with axes free where the model allows them, and find at which sizes it does."""
    free_batch = not batch.isdisjoint(wanted)
    samples = max(2, called.samples) if free_batch else called.samples  # 1 becomes a constant
    shapes = [(samples, *v.shape[1:]) if (i, 0) in batch else tuple(v.shape)
              for i, v in enumerate(called.tensors.values())]  # fmt: skip
    tensors = resized(list(called.tensors.values()), shapes, None)
    dynamic = [{a: Dim.AUTO for i, a in sorted(wanted) if i == number} or None  # pyright: ignore[reportAttributeAccessIssue]
               for number in range(len(tensors))]  # fmt: skip
    positional, named = called.arguments(tensors)
    hurried = _Deadline() if wanted - batch else nullcontext()
    with evaluating(called.model), quiet(), hurried:
        program = torch.export.export(
            called.model,
            positional,
            named,
            dynamic_shapes=dict(zip(named, dynamic, strict=True)) if named else tuple(dynamic),
            strict=False,
        )
    _forget(program)
    axes = free_axes(program, called.tensors, called.samples)
    if free_batch and "batch" not in axes.names:
        raise ValueError("the batch size is fixed")  # to samples, which need not be the example's
    axes = replace(axes, axes=tuple(checked_axes(called, program, axes)))
    free = axes.places()
    # torch computes with a size that it fixed on the way, in nodes that one fixed before has not.
    return _trace(called, free, batch) if free < wanted else Traced(called, program, axes)


def checked_axes(called: PlainCall, program: ExportedProgram, axes: FreeAxes) -> Iterator[FreeAxis]:
    """Find the step of each axis: the least at which model and program agree at another size.

    torch ties a U-Net's height to no multiple of 8, but neither it nor the program takes others.
    An axis for which there is none is left out.
    """
    yield from (axis for axis in axes.axes if axis.name == "batch")
    if not axes.spatial:
        return
    with quiet():
        module = program.module()
    for axis in axes.spatial:
        for step in STEPS:
            one = replace(axis, step=step)
            shapes = axes.sizes({one.name: one.grown(1)})
            generator = torch.Generator().manual_seed(0)
            inputs = resized(list(called.tensors.values()), shapes, generator)
            try:
                with evaluating(called.model), quiet():
                    wanted = tree_leaves(called(inputs))
                    positional, named = called.arguments(inputs)
                    got = tree_leaves(module(*positional, **named))
            except Exception:  # a model says in its own way that a size does not suit it
                continue
            if all(map(_close, wanted, got)):
                yield one
                break


def _close(wanted: Any, got: Any) -> bool:
    if not isinstance(wanted, Tensor) or not isinstance(got, Tensor):
        return wanted == got
    if wanted.shape != got.shape:
        return False
    wanted, got = wanted.double(), got.double()
    scale = float(wanted.abs().max()) if wanted.numel() else 0.0
    return torch.allclose(wanted, got, rtol=0, atol=_CLOSE * scale, equal_nan=True)


def _forget(program: ExportedProgram) -> None:
    """Take the user's source lines and example out of a program; its guards want the sizes."""
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
    program.example_inputs = tree_map(
        lambda v: v.new_zeros(()).expand(v.shape) if isinstance(v, Tensor) else v,
        program.example_inputs,
    )


class _Deadline(TorchFunctionMode):
    """Ends a block of calls to torch that takes too long, so that fewer axes are tried."""

    def __init__(self) -> None:
        super().__init__()
        self.end = time.monotonic() + _PATIENCE

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if time.monotonic() > self.end:
            raise TimeoutError(f"tracing took more than {_PATIENCE:g} seconds")
        return func(*args, **(kwargs or {}))


def first_line(error: BaseException) -> str:
    """Return what is at the root of an error, as one line without colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = re.sub(r"\x1b\[\d*m", "", str(error)).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
