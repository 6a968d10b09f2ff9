"""From what a user names to a model: a file, a torchvision name, or the built-in example."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorize.errors import ModelLoadError
from factorize.models import architectures, recognition
from factorize.models.model_file import check_tensors, read_checkpoint
from factorize.models.modules import check_modules, unwrap
from factorize.system.imports import brief, import_function
from factorize.types import Preprocessing

_REGISTRY = "torchvision:"


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be looked at.

    Attributes
    ----------
    model
        On the CPU, in eval mode, in the floating type it was saved in.
    arch
        ``torchvision:resnet18``, ``path/to/file.py:function``, ``pickled module ResNet`` or
        ``digits``.
    input_shape
        (C, H, W) where known, else None (detectors, video, unknown architectures).
    preprocessing
        That of torchvision's own weights, where they have one.
    notes
        What was recognised, renamed or assumed.
    """

    model: nn.Module
    arch: str
    input_shape: tuple[int, int, int] | None = None
    preprocessing: Preprocessing | None = None
    notes: tuple[str, ...] = ()


def load_model(
    source: str | Path,
    *,
    arch: str | None = None,
    arch_args: dict[str, Any] | None = None,
    weights: str | None = None,
    trust_pickle: bool = False,
) -> LoadedModel:
    """Load a model without running code from its file.

    Parameters
    ----------
    source
        A file (state dict, bare or in a checkpoint; pickled module; safetensors),
        ``torchvision:NAME``, or ``digits``.
    arch
        What a state dict belongs to: ``torchvision:NAME``, ``package.module:function`` or
        ``path/to/file.py:function``. None: recognised among torchvision's.
    arch_args
        Keyword arguments of the architecture.
    weights
        With ``torchvision:NAME``: torchvision's trained weights to download, such as ``DEFAULT``.
    trust_pickle
        Run the file's pickle as it is, with classes (and code) from anywhere.

    Raises
    ------
    ModelLoadError
        In one line: what is wrong with the file or name, and what to do.
    """
    name = str(source)
    named = name == "digits" or name.startswith(_REGISTRY)
    if named and arch is not None:
        raise ModelLoadError(f"{name}: is an architecture already; --arch goes with a file.")
    if weights is not None and not name.startswith(_REGISTRY):
        raise ModelLoadError(f"{name}: --weights goes with torchvision:NAME, not with this.")
    if arch_args and arch is None and not name.startswith(_REGISTRY):
        raise ModelLoadError(f"{name}: --arch-args needs --arch.")
    with _process_kept():
        if name == "digits":
            loaded = _load_digits()
        elif named:
            loaded = _load_registry(name, arch_args or {}, weights)
        else:
            loaded = _load_file(Path(source), arch, arch_args, trust_pickle)
    loaded.model.cpu().eval()
    return loaded


@contextmanager
def _process_kept() -> Iterator[None]:
    """Keep the caller's random numbers, which first weights draw from, and default device."""
    # Before torch 2.8, get_default_device() does not see torch.device used as a context.
    elsewhere = torch.empty(0).device.type != "cpu"
    with torch.random.fork_rng(devices=[]), torch.device("cpu") if elsewhere else nullcontext():
        yield


def _load_digits() -> LoadedModel:
    from factorize.models.digits import load_digits_model

    return LoadedModel(load_digits_model(), "digits", (1, 8, 8))


def _load_registry(name: str, arch_args: dict[str, Any], weights: str | None) -> LoadedModel:
    entry = name.removeprefix(_REGISTRY)
    architectures.check_name(entry)
    model = architectures.build(entry, arch_args, weights)
    shape, preprocessing = architectures.input_of(entry, weights, arch_args.get("image_size"))
    note = f"weights {weights}" if weights else "random weights: pass --weights DEFAULT or a file"
    return LoadedModel(model, name, shape, preprocessing, (note,))


def _load_file(
    path: Path, arch: str | None, arch_args: dict[str, Any] | None, trust_pickle: bool
) -> LoadedModel:
    if not path.exists() and str(path) in architectures.names():
        raise ModelLoadError(f"{path}: no such file; did you mean {_REGISTRY}{path}?")
    checkpoint = read_checkpoint(path, trust_pickle=trust_pickle)
    content = checkpoint.content
    if isinstance(content, nn.Module):
        module = _from_module(path, content)
        state = module.model.state_dict()
    else:
        module, state = None, content
    if arch is None:
        loaded = module or _recognise(path, state)
    elif arch.startswith(_REGISTRY):
        loaded = _fill_registry(path, state, arch, arch_args)
    else:
        loaded = _fill_function(path, state, arch, arch_args or {})
    return replace(loaded, notes=(*checkpoint.notes, *loaded.notes))


def _from_module(path: Path, module: nn.Module) -> LoadedModel:
    """Check a pickled module, and take it out of its wrappers."""
    # A crafted or very old pickle may lack any attribute, so any call may fail in any way.
    try:
        module = unwrap(module)
        check_modules(module, path)
        module.cpu().eval()
        tensors = dict(module.named_parameters()) | module.state_dict()
        check_tensors({key: t for key, t in tensors.items() if isinstance(t, Tensor)}, path)
    except ModelLoadError:
        raise
    except Exception as failure:
        raise ModelLoadError(
            f"{path}: its pickled module does not work with this version of torch "
            f"({brief(failure)}). Save model.state_dict() instead."
        ) from failure
    loaded = LoadedModel(module, f"pickled module {type(module).__name__}")
    if not type(module).__module__.startswith("torchvision.models."):
        return loaded
    fitting = recognition.find_fitting(architectures.shapes_of(tensors))
    if len(fitting) != 1:
        return loaded
    ((entry, arguments),) = fitting
    shape, preprocessing = architectures.input_of(entry, None, arguments.get("image_size"))
    note = f"its weights are shaped as those of {_described(entry, arguments)}"
    return LoadedModel(module, loaded.arch, shape, preprocessing, (note,))


def _recognise(path: Path, state: dict[str, Tensor]) -> LoadedModel:
    """Find the torchvision architecture that a state dict belongs to, and fill it."""
    state = recognition.current_names(state)
    shapes = architectures.shapes_of(state)
    fitting = recognition.find_fitting(shapes)
    if not fitting:
        raise ModelLoadError(
            f"{path}: fits no torchvision architecture; {recognition.nearest(shapes)}. "
            "Pass --arch package.module:function or --arch path/to/file.py:function."
        )
    if len(fitting) > 1:
        entries = " and ".join(f"{_REGISTRY}{entry}" for entry, _ in fitting)
        raise ModelLoadError(
            f"{path}: fits {entries} alike, which differ in what weights do not show. "
            f"Pass --arch with one of them."
        )
    ((entry, arguments),) = fitting
    loaded = _fill_entry(path, state, entry, arguments)
    return replace(loaded, notes=(f"recognised as {_described(entry, arguments)}", *loaded.notes))


def _fill_registry(
    path: Path, state: dict[str, Tensor], arch: str, arch_args: dict[str, Any] | None
) -> LoadedModel:
    entry = arch.removeprefix(_REGISTRY)
    architectures.check_name(entry)
    state = recognition.current_names(state)
    if arch_args is None:
        arch_args = recognition.fit(entry, architectures.shapes_of(state)) or {}
    return _fill_entry(path, state, entry, arch_args)


def _fill_entry(
    path: Path, state: dict[str, Tensor], entry: str, arguments: dict[str, Any]
) -> LoadedModel:
    model = architectures.build_empty(entry, arguments)
    arch = f"{_REGISTRY}{entry}"
    notes = _fill(model, state, path, arch)
    if getattr(model, "transform_input", None) is False:
        notes.append(
            "takes images as they are; with weights from torchvision itself pass "
            f"--arch {arch} --arch-args '{{\"transform_input\": true}}'"
        )
    shape, preprocessing = architectures.input_of(entry, None, arguments.get("image_size"))
    return LoadedModel(model, arch, shape, preprocessing, tuple(notes))


def _fill_function(
    path: Path, state: dict[str, Tensor], arch: str, arguments: dict[str, Any]
) -> LoadedModel:
    function = import_function(arch)
    try:
        model = function(**arguments)
    except Exception as failure:  # a user's code, which may raise anything
        raise ModelLoadError(
            f"{arch}: calling it failed: {brief(failure)}. Check --arch-args."
        ) from failure
    if not isinstance(model, nn.Module):
        raise ModelLoadError(f"{arch}: returned a {type(model).__name__}, not an nn.Module.")
    model = unwrap(model).cpu()
    return LoadedModel(model, arch, notes=tuple(_fill(model, state, path, arch)))


def _fill(model: nn.Module, state: dict[str, Tensor], path: Path, arch: str) -> list[str]:
    """Load a state dict strictly, in its own floating type; return what to say about it."""
    own: Any = model.state_dict()
    difference = recognition.differences(
        architectures.shapes_of(state), architectures.shapes_of(own)
    )
    for key in own.keys() & state.keys():
        if own[key].is_floating_point() != state[key].is_floating_point():
            raise ModelLoadError(
                f"{path}: {key} is {state[key].dtype}, expected {own[key].dtype}. "
                "Start from the model before quantization."
            )
    floating = sorted({t.dtype for t in state.values() if t.is_floating_point()}, key=str)
    notes: list[str] = []
    if floating:
        dtype = functools.reduce(torch.promote_types, floating)
        model.to(dtype)
        if len(floating) > 1:
            notes.append(f"saved in {' and '.join(map(str, floating))}: loaded as {dtype}")
        elif dtype != torch.float32:
            notes.append(f"saved in {dtype}")
    complete: Any = OrderedDict(state)
    if not difference:
        # Files without a version are taken for the oldest one, which MNASNet refuses: these names
        # are of today, and so the version. Only counters may be missing.
        complete = OrderedDict(own) | complete
        complete._metadata = own._metadata
    try:
        model.load_state_dict(complete, strict=True)
    except Exception as failure:  # modules have loading code of their own
        reason = difference or " ".join(str(failure).split())[:300]
        raise ModelLoadError(
            f"{path}: does not fit {arch}: {reason}. Check --arch and --arch-args."
        ) from failure
    return notes


def _described(entry: str, arguments: dict[str, Any]) -> str:
    """Name an architecture and what it was built with."""
    classes = arguments.get("num_classes")
    others = [f"{key}={value}" for key, value in arguments.items() if key != "num_classes"]
    parts = ([f"{classes} classes"] if classes else []) + others
    return f"{_REGISTRY}{entry}" + (f" with {', '.join(parts)}" if parts else "")
