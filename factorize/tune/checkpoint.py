"""The state of a fine-tuning run, and the file it goes on from."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorize.errors import ModelLoadError, OutputError
from factorize.tune.diverging import Losses

VERSION = 2


@dataclass
class RunState:
    """Where a run is.

    Attributes
    ----------
    epoch, batch
        The next batch is number ``batch`` of ``epoch``, both from 0.
    loss_sum
        Of the batches of this epoch so far.
    best
        State dict of the best model so far; ``best_key`` (score, -distance) orders them.
    """

    epoch: int = 0
    batch: int = 0
    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)
    best_key: tuple[float, float] = (-float("inf"), -float("inf"))
    best_epoch: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    losses: Losses = field(default_factory=Losses)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a checkpoint holds them."""
        return {**vars(self), "losses": dict(vars(self.losses))}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> RunState:
        """What `to_dict` gave."""
        return cls(**{**content, "losses": Losses(**content["losses"])})


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Copy a state dict, with the versions of its modules, that later training leaves alone."""
    state = model.state_dict()
    for key, value in state.items():
        state[key] = value.detach().clone() if isinstance(value, Tensor) else value
    return state


def fingerprint(start: nn.Module, original: nn.Module, **settings: Any) -> dict[str, Any]:
    """Describe what must be equal for a run to go on: settings, and both models.

    The original to the bit, the tuned model by its layers alone: its weights come from the
    checkpoint, and a factorization made anew may differ by rounding (other threads, another CPU).
    """
    models = {"original model": _digest(original, True), "tuned model": _digest(start, False)}
    return {"version": VERSION, **settings, **models}


def _digest(model: nn.Module, values: bool) -> str:
    """Hash names, types and shapes of all parameters and buffers, and their values if asked."""
    found = hashlib.sha256()
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        if values:
            flat = value.detach().cpu().contiguous().view(-1)
            found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint in one piece: the old one stays until the new one is whole.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    temporary = path.with_name(f".partial-{path.name}")
    try:
        try:
            torch.save(content, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError
        reason = str(error).splitlines()[0]
        raise OutputError(
            f"{path}: the checkpoint cannot be written ({reason}). Give a path that can be."
        ) from error


def missing_checkpoint(path: Path) -> ModelLoadError:
    """Tell that there is nothing to resume from."""
    return ModelLoadError(
        f"{path}: there is no checkpoint to resume from: the run had not begun to tune, or was "
        "done. Start without resuming."
    )


def read(path: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint of the run that ``expected`` (a fingerprint) describes.

    Raises
    ------
    ModelLoadError
        If it is missing, damaged or of another run.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
        found = dict(content["fingerprint"])
    except FileNotFoundError:
        raise missing_checkpoint(path) from None
    except (OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, pickle.PickleError):
        raise ModelLoadError(
            f"{path}: not a readable fine-tuning checkpoint. Start without resuming."
        ) from None
    for key, value in expected.items():
        if found.get(key) != value:
            raise ModelLoadError(
                f"{path}: a checkpoint is resumed by the run that wrote it: {key} was "
                f"{found.get(key)!r}, is {value!r}. Use the same, or start without resuming."
            )
    return content
