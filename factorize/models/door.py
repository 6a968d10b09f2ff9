"""What a door is: one kind of MODEL, told apart from the others and made a module.

A door is a module of this folder with the constant and the two functions of `Door`. A new kind of
MODEL is one new file, and one new entry of `load_model.DOORS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from factorize.models.model_file import Checkpoint, read_checkpoint
from factorize.types import Preprocessing


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be looked at.

    Attributes
    ----------
    model
        On the CPU, in eval mode; float32, or float64 where it was saved so.
    arch
        ``torchvision:resnet18``, ``timm:resnet18``, ``path/to/file.py:function``,
        ``pickled module ResNet`` or ``digits``.
    input_shape
        (C, H, W), or with one or three sizes, where known, else None (detectors, video, unknown
        architectures).
    preprocessing
        That of the weights, where torchvision, timm or the folder says it.
    notes
        What was recognised, renamed or assumed.
    example
        An input, where the model takes others than one tensor of numbers.
    check
        Checks the model on one sample, before any work; gives more notes.
    """

    model: nn.Module
    arch: str
    input_shape: tuple[int, ...] | None = None
    preprocessing: Preprocessing | None = None
    notes: tuple[str, ...] = ()
    example: Any = None
    check: Callable[[Any], tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Source:
    """What a user named, and the options beside it; see `load_model`."""

    name: str
    arch: str | None = None
    arch_args: dict[str, Any] | None = None
    weights: str | None = None
    key: str | None = None
    trust_pickle: bool = False
    shapes: dict[str, tuple[int, ...]] | None = None

    @property
    def path(self) -> Path:
        """The name as a file's."""
        return Path(self.name)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """What the file holds, read once, whichever door asks first."""
        return read_checkpoint(self.path, key=self.key, trust_pickle=self.trust_pickle)


class Door(Protocol):
    """One kind of MODEL.

    Attributes
    ----------
    OPTIONS
        Those of ``arch``, ``arch_args``, ``weights``, ``key`` and ``shapes`` that go with it; where
        ``arch`` is given, ``arch_args`` are the architecture's.
    """

    OPTIONS: tuple[str, ...]

    def takes(self, source: Source) -> bool:
        """Whether this is its kind, where no door before it has taken the source."""
        ...

    def load(self, source: Source) -> LoadedModel:
        """The model; `load_model` puts it on the CPU and into eval mode.

        Raises
        ------
        ModelLoadError
            In one line: what is wrong with the source, and what to do.
        """
        ...
