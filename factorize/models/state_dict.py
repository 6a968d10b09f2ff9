"""A file with weights: they are put into the ``--arch``, or into the entry that they fit."""

from __future__ import annotations

import functools
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorize.errors import ModelLoadError
from factorize.models import architectures, recognition
from factorize.models.architectures import PREFIX
from factorize.models.door import LoadedModel, Source
from factorize.models.modules import sound, unwrap
from factorize.system.imports import brief, import_function

OPTIONS: tuple[str, ...] = ("arch",)


def takes(source: Source) -> bool:
    """Always: this is the last door, and says what is wrong with what is no model."""
    del source
    return True


def load(source: Source) -> LoadedModel:
    """Find the architecture and fill it; of a pickled module only the weights are used."""
    path, arch, content = source.path, source.arch, source.checkpoint.content
    state = content if isinstance(content, dict) else sound(content, path).state_dict()
    if arch is None:
        loaded = _recognise(path, state)
    elif arch.startswith(PREFIX):
        loaded = _fill_registry(path, state, arch, source.arch_args)
    else:
        loaded = _fill_function(path, state, arch, source.arch_args or {})
    return replace(loaded, notes=(*source.checkpoint.notes, *loaded.notes))


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
        entries = " and ".join(f"{PREFIX}{entry}" for entry, _ in fitting)
        raise ModelLoadError(
            f"{path}: fits {entries} alike, which differ in what weights do not show. "
            f"Pass --arch with one of them."
        )
    ((entry, arguments),) = fitting
    loaded = _fill_entry(path, state, entry, arguments)
    return replace(
        loaded, notes=(f"recognised as {recognition.described(entry, arguments)}", *loaded.notes)
    )


def _fill_registry(
    path: Path, state: dict[str, Tensor], arch: str, arch_args: dict[str, Any] | None
) -> LoadedModel:
    entry = arch.removeprefix(PREFIX)
    architectures.check_name(entry)
    state = recognition.current_names(state)
    if arch_args is None:
        arch_args = recognition.fit(entry, architectures.shapes_of(state)) or {}
    return _fill_entry(path, state, entry, arch_args)


def _fill_entry(
    path: Path, state: dict[str, Tensor], entry: str, arguments: dict[str, Any]
) -> LoadedModel:
    model = architectures.build_empty(entry, arguments)
    arch = f"{PREFIX}{entry}"
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
