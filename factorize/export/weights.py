"""The weights alone, as safetensors."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import nn

from factorize.errors import ExportError, OutputError
from factorize.export.publish import publishing


def save_weights(model: nn.Module, path: str | Path, *, force: bool = False) -> None:
    """Save a model's weights and buffers, to be read by ``safetensors.torch.load_model``.

    A tensor shared by several modules is saved once and is shared again after loading.

    Parameters
    ----------
    force
        Whether an existing file is overwritten.

    Raises
    ------
    ExportError
        If weights overlap without being equal, which the format cannot express.
    OutputError
        If the file exists or cannot be written.
    """
    with publishing(path, force) as temporary:
        try:
            save_model(model, str(temporary))
        except SafetensorError as error:
            raise OutputError(
                f"{path}: cannot be written: {error}. Choose another path."
            ) from error
        except (RuntimeError, AttributeError, TypeError) as error:
            message = str(error).strip().splitlines()[0]
            raise ExportError(
                f"{path}: weights must not overlap in memory, got: {message}. "
                "Give each module its own copy."
            ) from error
