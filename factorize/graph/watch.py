"""One run of a model, watched: which layers are called, with what, what else is done to them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from factorize.graph.spec_of import axes_of
from factorize.spec import Size
from factorize.tensor.call import call, evaluating
from factorize.tensor.wrappers import interpreted

# What a chain that stands in for a layer no longer has.
_OWN_ATTRIBUTES = frozenset(
    [
        "weight",
        "bias",
        "in_channels",
        "out_channels",
        "in_features",
        "out_features",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "transposed",
        "output_padding",
        "groups",
        "padding_mode",
        "_conv_forward",
    ]
)


@dataclass
class Seen:
    """What one run told about one module.

    Attributes
    ----------
    order
        Of its first call; infinite where there was none.
    told_more
        Whether it was called with more than its input, which is all that a chain takes.
    read_outside
        Attributes that were read while the module itself was not running.
    unbatched
        Of a convolution: whether a call had no batch axis.
    """

    order: float = float("inf")
    sizes: list[Size] = field(default_factory=list)
    inside: int = 0
    told_more: bool = False
    read_outside: set[str] = field(default_factory=set)
    unbatched: bool = False


@dataclass(frozen=True)
class Run:
    """What one run told: of each module, by its identity, and whose outputs were concatenated.

    Attributes
    ----------
    joined
        Identities of modules whose outputs, one call each, were all that was concatenated along
        the channels.
    """

    seen: dict[int, Seen]
    joined: list[tuple[int, ...]]


@contextmanager
def watched(modules: Sequence[nn.Module], batch: int) -> Iterator[Run]:
    """Record each module's calls, and reads of its attributes from outside of its own call.

    A model that computes with ``self.conv.weight`` breaks when the convolution is replaced. Hooks
    cannot see that, so each instance gets, for the time of one run, a subclass that looks.

    Parameters
    ----------
    batch
        Samples that the model is run on: a linear layer may see them folded with other axes.
    """
    run = Run({id(module): Seen() for module in modules}, [])
    classes = {id(module): module.__class__ for module in modules}
    outputs = _Concatenations(run)
    calls = 0

    def spy(original: Any) -> type:
        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
            nonlocal calls
            calls += 1
            record = run.seen[id(self)]
            record.order = min(record.order, calls)
            record.told_more |= len(args) + len(kwargs) > 1
            given = args[0] if args else kwargs.get("input")
            if isinstance(given, Tensor):
                size = _size(self, given, batch)
                record.sizes.append(size)
                record.unbatched |= given.ndim == len(size) + 1
            record.inside += 1
            try:
                made = original.__call__(self, *args, **kwargs)
            finally:
                record.inside -= 1
            outputs.made(self, made)
            return made

        def __getattribute__(self: Any, name: str) -> Any:  # noqa: N807
            if name in _OWN_ATTRIBUTES and not run.seen[id(self)].inside:
                run.seen[id(self)].read_outside.add(name)
            return original.__getattribute__(self, name)

        namespace = {"__call__": __call__, "__getattribute__": __getattribute__}
        return type(original.__name__, (original,), namespace)

    spies = {cls: spy(cls) for cls in set(classes.values())}
    try:
        for module in modules:
            module.__class__ = spies[module.__class__]
        with outputs:
            yield run
    finally:
        for module in modules:
            module.__class__ = classes[id(module)]


def undisturbed(model: nn.Module, example_input: Any) -> Any:
    """One run in eval mode, without gradients: the input and the random state stay as they are.

    As each run draws the same random numbers, what differs between two is not that.
    """

    def apart(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().clone().requires_grad_(value.requires_grad)

    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    cuda = sorted(device.index or 0 for device in devices)
    with evaluating(model), torch.random.fork_rng(devices=cuda), interpreted():
        return call(model, tree_map(apart, example_input))


def _size(module: Any, x: Tensor, batch: int) -> Size:
    """The spatial size of an input; of a linear layer's, what lies between sample and channels."""
    if isinstance(module, nn.Linear):
        if x.ndim > 1 and x.shape[0] % batch:  # the samples are along another axis, or none
            positions = prod(x.shape[:-1])
            return (positions if positions % batch else positions // batch,)
        folded = x.shape[0] // batch if x.ndim > 1 else 1
        return tuple(x.shape[1:-1]) if folded == 1 else (folded, *x.shape[1:-1])
    axes = axes_of(module)
    return tuple(x.shape[-axes:])


class _Concatenations(TorchFunctionMode):
    """Sees which outputs of layers are concatenated along the channels, and nothing else is."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.makers: dict[int, tuple[int, weakref.ref[Tensor]]] = {}  # by the output's identity

    def made(self, module: nn.Module, output: Any) -> None:
        if isinstance(output, Tensor):
            self.makers[id(output)] = id(module), weakref.ref(output)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.cat, torch.concat, torch.concatenate) and args:
            dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
            parts = list(args[0])
            found = [maker for part in parts if (maker := self._maker(part)) is not None]
            channels = 1 - getattr(parts[0], "ndim", 0) if parts else 1
            if dim in (1, channels) and len(found) == len(parts) == len(set(found)) > 1:
                self.run.joined.append(tuple(found))
        return func(*args, **kwargs)

    def _maker(self, part: object) -> int | None:
        """The layer whose output this very tensor is."""
        maker, output = self.makers.get(id(part), (None, None))
        return maker if output is not None and output() is part else None
