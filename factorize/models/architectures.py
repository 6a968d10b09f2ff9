"""torchvision's registry: its entries' names, models, shapes and trained weights."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from factorize.errors import ModelLoadError
from factorize.system.imports import brief
from factorize.types import Preprocessing

Shapes = Mapping[str, tuple[int, ...]]

PREFIX = "torchvision:"
"""Of an entry's name, where a user gives it."""

_ALLOCATORS = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn})


class _WithoutValues(TorchFunctionMode):
    """Build modules on the CPU without initial values, or on the meta device without storage."""

    def __init__(self, device: str, allocators: frozenset[Any]) -> None:
        super().__init__()
        self.device = device
        self.allocators = allocators

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.normal_:  # trunc_normal_ draws until the values lie within its bounds
            return args[0].fill_(args[1] if len(args) > 1 else kwargs.get("mean", 0.0))
        if func is Tensor.uniform_ or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        if func in self.allocators and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": self.device}
        return func(*args, **kwargs)


def names() -> list[str]:
    """List the registry's float models in alphabetical order."""
    from torchvision.models import list_models

    return [name for name in list_models() if ".quantization." not in family(name)]


def check_name(name: str) -> None:
    """Refuse a name that is not in the registry.

    Raises
    ------
    ModelLoadError
        With the nearest names.
    """
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "see torchvision.models."
        raise ModelLoadError(f"{PREFIX}{name}: torchvision has no such float model; {hint}")


def build(name: str, arguments: Mapping[str, Any], weights: str | None = None) -> nn.Module:
    """Build an entry with torchvision's own initial or (downloaded) trained weights.

    Raises
    ------
    ModelLoadError
        Unknown weights, a failed download, or arguments the architecture does not take.
    """
    if weights is not None:
        weights_entry(name, weights)
    try:
        return _call(name, arguments, weights=weights, initialise=True)
    except OSError as failure:
        raise ModelLoadError(
            f"{PREFIX}{name}: cannot download the weights {weights}: {brief(failure)}. "
            "Download them elsewhere and pass the file."
        ) from failure
    except Exception as failure:
        raise ModelLoadError(
            f"{PREFIX}{name}: cannot be built: {brief(failure)}. Check --arch-args and --weights."
        ) from failure


def build_empty(name: str, arguments: Mapping[str, Any], device: str = "cpu") -> nn.Module:
    """Build an entry quickly: without initial values, and on the meta device without storage.

    Raises
    ------
    ModelLoadError
        The architecture does not take the arguments.
    """
    # Not under torch.device("meta"): where a constructor computes with a range it needs the values
    # (RegNet its widths), and where it does not, Swin's index tables would take seconds.
    try:
        try:
            with _WithoutValues(device, _ALLOCATORS | {torch.arange}):
                return _call(name, arguments)
        except NotImplementedError:
            with _WithoutValues(device, _ALLOCATORS):
                return _call(name, arguments)
    except Exception as failure:
        raise ModelLoadError(
            f"{PREFIX}{name}: cannot be built: {brief(failure)}. Check --arch-args."
        ) from failure


@functools.cache
def structure(name: str, **arguments: Any) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of an entry's state dict."""
    return shapes_of(build_empty(name, arguments, device="meta").state_dict())


def shapes_of(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a state dict."""
    return {key: tuple(t.shape) for key, t in state.items() if isinstance(t, Tensor)}


def weights_entry(name: str, member: str | None) -> Any:
    """Look up an entry's trained weights, the default ones for None; None where it has none.

    Raises
    ------
    ModelLoadError
        It has no weights of that name.
    """
    from torchvision.models import get_model_weights

    entries = get_model_weights(name)
    if member is None:
        return getattr(entries, "DEFAULT", None)
    if member not in entries.__members__:
        raise ModelLoadError(
            f"{PREFIX}{name}: has no weights {member}; it has "
            f"{', '.join(entries.__members__) or 'none'}."
        )
    return entries[member]


def input_of(
    name: str, member: str | None = None, image_size: int | None = None
) -> tuple[tuple[int, int, int] | None, Preprocessing | None]:
    """Tell the input shape (C, H, W) and preprocessing that an entry's weights were trained with.

    Both are None for what does not take one normalised image (detectors, video, optical flow).
    """
    entry = weights_entry(name, member)
    if entry is None or re.search(r"\.(detection|video|optical_flow)\.", family(name)):
        return None, None
    preset = entry.transforms()
    (resize,) = preset.resize_size
    (crop,) = getattr(preset, "crop_size", (None,))
    if image_size not in (None, crop):
        resize = crop = image_size
    side = crop or resize
    preprocessing = Preprocessing(tuple(preset.mean), tuple(preset.std), resize, crop)
    return (len(preset.mean), side, side), preprocessing


def family(name: str) -> str:
    """Name the module that defines an entry, such as ``torchvision.models.resnet``."""
    return _builder(name).__module__


def _builder(name: str) -> Callable[..., nn.Module]:
    from torchvision.models import get_model_builder

    return get_model_builder(name)


def _call(
    name: str, arguments: Mapping[str, Any], weights: str | None = None, initialise: bool = False
) -> nn.Module:
    builder = _builder(name)
    keywords = dict(arguments)
    if weights is None:
        if "weights_backbone" in inspect.signature(builder).parameters:
            keywords.setdefault("weights_backbone", None)
        if name in ("googlenet", "inception_v3"):  # which otherwise warn that this will change
            keywords.setdefault("init_weights", initialise)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return builder(weights=weights, **keywords)
