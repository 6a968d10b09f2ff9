"""Whole pickled models from untrusted files.

A pickle is a program. ``torch.load(weights_only=True)`` runs it with a short list of names, and
lets it *call* each listed one with any arguments, and call what those calls return. ``nn.Module``
classes on that list would hand a crafted file every constructor and ``forward`` of torch and
torchvision, and through ``nn.Identity`` ways to overwrite attributes of torch's own classes.

So nothing of torch.nn or torchvision is on the list. Each name stands for an empty class that takes
no arguments and does nothing but keep its state; what a crafted file can call is what a plain state
dict can. When the pickle has run to its end, each stand-in turns into the class it stood for, by
that class's ``__setstate__`` (a ``__dict__.update``), unless its state would shadow a method. What
that leaves to a file: any attribute of any module may hold any number, string, tensor, module or
listed class. Neither this nor calling the model can reach a file, a process or an import.

`functools.partial` (vision transformers keep one) only ever wraps a listed name, and functions
(`box_iou`) are handed over as values: both can be called by the finished model alone.

What trainers write beside the weights is not built at all: see `inert`.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from factorize.models import inert
from factorize.models.pickle_size import check_pickles

# What detectors and optical-flow nets keep as attributes besides modules; found by pickling every
# model of torchvision's registry, which a test repeats.
_PLAIN_NAMES = {
    "torchvision.models.detection._utils": (
        "BalancedPositiveNegativeSampler",
        "BoxCoder",
        "BoxLinearCoder",
        "Matcher",
        "SSDMatcher",
    ),
    "torchvision.models.optical_flow.raft": ("_pass_through_h",),
    "torchvision.ops.boxes": ("box_iou",),
}


def load_pickled(path: Path, *, trust: bool) -> Any:
    """Unpickle a torch file onto the CPU.

    Parameters
    ----------
    trust
        Run the pickle as it is: it can do whatever its author wanted.

    Raises
    ------
    Exception
        Whatever torch raises: `pickle.UnpicklingError` for a name that is not allowed, and many
        others for a damaged file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on pickle protocols and old storages: the file is no news
        if trust:
            return torch.load(path, map_location="cpu", weights_only=False)
        check_pickles(path)
        created: list[Any] = []
        names = [*inert.stand_ins(), *(_stand_in(real, created) for real in _allowed())]
        with torch.serialization.safe_globals(names):  # pyright: ignore[reportArgumentType]
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        for stand_in in created:
            _become_real(stand_in)
        return loaded


@functools.cache
def _allowed() -> tuple[Any, ...]:
    """Classes and functions that a pickled model may name."""
    import torchvision  # noqa: F401  (fills sys.modules with the modules searched below)

    allowed: list[Any] = [nn.DataParallel, functools.partial]
    for place, module in sorted(sys.modules.items()):
        if not place.startswith(("torch.nn.modules.", "torchvision.models.", "torchvision.ops.")):
            continue
        if "quantiz" in place or module is None:
            continue
        for name, value in vars(module).items():
            if name in _PLAIN_NAMES.get(place, ()) or (
                isinstance(value, type)
                and value.__module__ == place
                and issubclass(value, nn.Module)
                # These generate code, or change their class while they run.
                and not issubclass(
                    value, (torch.fx.GraphModule, torch.jit.ScriptModule, LazyModuleMixin)
                )
            ):
                allowed.append(value)
    return tuple(allowed)


class _StandIn:
    """Base of the stand-ins."""

    real: Any


def _stand_in(real: Any, created: list[Any]) -> type[_StandIn]:
    """Make the class that the unpickler gets for ``real``; instances are added to ``created``."""

    def new(cls: type[_StandIn], *args: Any) -> _StandIn:
        if args and real is not functools.partial:
            raise TypeError(f"{real.__module__}.{real.__qualname__} called while unpickling")
        self = object.__new__(cls)
        created.append(self)
        return self

    def keep(self: _StandIn, state: Any) -> None:
        vars(self)["state"] = state

    body = {
        "real": staticmethod(real),  # a bare function would turn into a method
        "__new__": new,
        "__init__": lambda self, *args: None,
        "__setstate__": keep,
        "__module__": real.__module__,
        "__qualname__": real.__qualname__,
    }
    return type(real.__name__, (_StandIn,), body)


def _become_real(stand_in: _StandIn) -> None:
    """Turn a stand-in into an instance of its class, in place, so that references to it hold."""
    real = type(stand_in).real
    if real is functools.partial:
        return  # an attribute of a module, made real with it
    if not isinstance(real, type):
        raise TypeError(f"{real.__module__}.{real.__qualname__} called while unpickling")
    state = vars(stand_in).pop("state", {})
    if type(state) is not dict or not all(type(key) is str for key in state):
        raise TypeError(f"the state of a {real.__qualname__} is not a dict of attributes")
    for key in state:
        if callable(getattr(real, key, None)):
            raise TypeError(f"attribute {key!r} of a {real.__qualname__} shadows its method")
    stand_in.__class__ = real
    state = {key: _real_value(value) for key, value in state.items()}
    set_state: Callable[[dict[str, Any]], None] = getattr(
        stand_in, "__setstate__", vars(stand_in).update
    )
    set_state(state)


def _real_value(value: Any) -> Any:
    if isinstance(value, type) and issubclass(value, _StandIn):
        return value.real
    if isinstance(value, _StandIn) and type(value).real is functools.partial:
        function, args, keywords, _ = vars(value)["state"]
        return functools.partial(_real_value(function), *args, **(keywords or {}))
    return value
