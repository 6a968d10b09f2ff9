"""From what a user names to a model: the doors, in the order in which they are tried."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from factorize.errors import ModelLoadError
from factorize.models import (
    digits,
    exported_program,
    hub_folder,
    onnx_model,
    pickled_module,
    state_dict,
    timm_name,
    torchvision_name,
)
from factorize.models.door import Door, LoadedModel, Source

DOORS: tuple[Door, ...] = (
    digits, torchvision_name, timm_name, hub_folder, onnx_model, exported_program, pickled_module,
    state_dict,
)  # fmt: skip
"""The first that takes a source loads it; the last takes every file."""


def load_model(
    source: str | Path,
    *,
    arch: str | None = None,
    arch_args: dict[str, Any] | None = None,
    weights: str | None = None,
    key: str | None = None,
    trust_pickle: bool = False,
    shapes: dict[str, tuple[int, ...]] | None = None,
) -> LoadedModel:
    """Load a model without running code from its file; random weights are the same each time.

    Parameters
    ----------
    source
        A file (state dict, bare or in a checkpoint; pickled module; safetensors; ONNX; exported
        program), a folder of timm or transformers (``config.json`` and safetensors),
        ``torchvision:NAME``, ``timm:NAME``, ``hf:ORG/NAME``, or ``digits``.
    arch
        What a state dict belongs to: ``torchvision:NAME``, ``timm:NAME``,
        ``package.module:function`` or ``path/to/file.py:function``. None: recognised among
        torchvision's.
    arch_args
        Keyword arguments of the architecture.
    weights
        With ``torchvision:NAME`` and ``timm:NAME``: their trained weights to download, such as
        ``DEFAULT``.
    key
        Of the weights, where a file has several: ``params_ema``, or with dots ``ema.module``.
    trust_pickle
        Run the file's pickle as it is, with classes (and code) from anywhere.
    shapes
        Of an ONNX file's inputs, by name, with the batch.

    Raises
    ------
    ModelLoadError
        In one line: what is wrong with the file or name, and what to do.
    """
    given = Source(str(source), arch, arch_args, weights, key, trust_pickle, shapes)
    with _process_kept():
        door = next(door for door in DOORS if door.takes(given))
        _check_options(given, door)
        loaded = door.load(given)
    loaded.model.cpu().eval()
    return loaded


def _check_options(source: Source, door: Door) -> None:
    if source.arch is not None and "arch" not in door.OPTIONS:
        raise ModelLoadError(f"{source.name}: is an architecture already; --arch goes with a file.")
    if source.weights is not None and "weights" not in door.OPTIONS:
        raise ModelLoadError(
            f"{source.name}: --weights goes with torchvision:NAME or timm:NAME, not with this."
        )
    if source.key is not None and "key" not in door.OPTIONS:
        raise ModelLoadError(f"{source.name}: --key goes with a file, not with this.")
    if source.shapes is not None and "shapes" not in door.OPTIONS:
        raise ModelLoadError(
            f"{source.name}: --input-shape by name goes with an ONNX file. Give C,H,W."
        )
    if source.arch_args and source.arch is None and "arch_args" not in door.OPTIONS:
        raise ModelLoadError(f"{source.name}: --arch-args needs --arch.")


@contextmanager
def _process_kept() -> Iterator[None]:
    """Keep the caller's random numbers and default device.

    Random weights are the same at each run, so that a run can be resumed and finds what earlier
    ones of the same net computed.
    """
    # Before torch 2.8, get_default_device() does not see torch.device used as a context.
    elsewhere = torch.empty(0).device.type != "cpu"
    with torch.random.fork_rng(devices=[]), torch.device("cpu") if elsewhere else nullcontext():
        torch.manual_seed(0)
        yield
