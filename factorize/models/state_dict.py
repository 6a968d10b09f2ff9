"""A file with weights: they are put into the ``--arch``, or into the entry that they fit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from factorize.errors import ModelLoadError
from factorize.models import architectures, recognition, timm_name
from factorize.models.architectures import PREFIX
from factorize.models.door import LoadedModel, Source
from factorize.models.modules import computes_in, sound
from factorize.models.prefixes import Reading, best_reading, readings
from factorize.system.imports import brief, import_function
from factorize.tensor.wrappers import unwrap

OPTIONS: tuple[str, ...] = ("arch", "key")


def takes(source: Source) -> bool:
    """Always: this is the last door, and says what is wrong with what is no model."""
    del source
    return True


def load(source: Source) -> LoadedModel:
    """Find the architecture and fill it; of a pickled module only the weights are used."""
    path, arch, content = source.path, source.arch, source.checkpoint.content
    state = content if isinstance(content, dict) else sound(content, path).state_dict()
    found = readings(state)
    if arch is None:
        loaded = _recognise(path, found)
    elif arch.startswith(PREFIX):
        loaded = _fill_registry(path, found, arch, source.arch_args)
    elif arch.startswith(timm_name.PREFIX):
        loaded = _fill_timm(path, found, arch, source.arch_args)
    else:
        loaded = _fill_function(path, found, arch, source.arch_args or {})
    return replace(loaded, notes=(*source.checkpoint.notes, *loaded.notes))


def _recognise(path: Path, found: Sequence[Reading]) -> LoadedModel:
    """Find the torchvision architecture that a state dict belongs to, and fill it."""
    for reading in found:
        fitting = recognition.find_fitting(reading.shapes)
        if fitting:
            break
    else:
        near = next(filter(None, (recognition.nearest(one.shapes) for one in found)), None)
        near = near or f"none has a tensor named {next(iter(found[0].state))}"
        raise ModelLoadError(
            f"{path}: needs the function that builds its model, as it fits no torchvision "
            "architecture. Pass --arch package.module:function or --arch path/to/file.py:function "
            f"({near})."
        )
    if len(fitting) > 1:
        entries = " and ".join(f"{PREFIX}{entry}" for entry, _ in fitting)
        raise ModelLoadError(
            f"{path}: fits {entries} alike, which differ in what weights do not show. "
            f"Pass --arch with one of them."
        )
    ((entry, arguments),) = fitting
    loaded = _fill_entry(path, [reading], entry, arguments)
    return replace(
        loaded, notes=(*loaded.notes, f"recognised as {recognition.described(entry, arguments)}")
    )


def _fill_registry(
    path: Path, found: Sequence[Reading], arch: str, arch_args: dict[str, Any] | None
) -> LoadedModel:
    entry = arch.removeprefix(PREFIX)
    architectures.check_name(entry)
    if arch_args is None:
        for reading in found:
            arguments = recognition.fit(entry, reading.shapes)
            if arguments is not None:
                return _fill_entry(path, [reading], entry, arguments)
    return _fill_entry(path, found, entry, arch_args or {})


def _fill_entry(
    path: Path, found: Sequence[Reading], entry: str, arguments: dict[str, Any]
) -> LoadedModel:
    model = architectures.build_empty(entry, arguments)
    arch = f"{PREFIX}{entry}"
    notes = _fill(model, found, path, arch)
    if getattr(model, "transform_input", None) is False:
        notes.append(
            "takes images as they are; with weights from torchvision itself pass "
            f"--arch {arch} --arch-args '{{\"transform_input\": true}}'"
        )
    shape, preprocessing = architectures.input_of(entry, None, arguments.get("image_size"))
    return LoadedModel(model, arch, shape, preprocessing, tuple(notes))


def _fill_timm(
    path: Path, found: Sequence[Reading], arch: str, arguments: dict[str, Any] | None
) -> LoadedModel:
    name = arch.removeprefix(timm_name.PREFIX)
    if arguments is None:
        guesses = (timm_name.fitted_arguments(name, reading.shapes) for reading in found)
        arguments = next(filter(None, guesses), {})
    model = timm_name.build(name, arguments)
    notes = _fill(model, found, path, arch)
    shape, preprocessing, told = timm_name.input_of(model, arguments)
    return LoadedModel(model, arch, shape, preprocessing, (*notes, *told))


def _fill_function(
    path: Path, found: Sequence[Reading], arch: str, arguments: dict[str, Any]
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
    return LoadedModel(model, arch, notes=tuple(_fill(model, found, path, arch)))


def _fill(model: nn.Module, found: Sequence[Reading], path: Path, arch: str) -> list[str]:
    """Load the reading that fits, strictly; return what to say about it."""
    own: Any = model.state_dict()
    shapes = architectures.shapes_of(own)
    reading = best_reading(found, shapes)
    state, difference = reading.state, recognition.differences(reading.shapes, shapes)
    for key in own.keys() & state.keys():
        if own[key].is_floating_point() != state[key].is_floating_point():
            raise ModelLoadError(
                f"{path}: {key} is {state[key].dtype}, expected {own[key].dtype}. "
                "Start from the model before quantization."
            )
    dtype, told = computes_in(state.values())
    model.to(dtype)
    notes = [*reading.notes, *told]
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
