"""The model as .pt2: a program that torch runs without the model's own classes."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from factorize.errors import ExportError
from factorize.export.comparison import compare
from factorize.export.publish import publishing
from factorize.export.traces import Traced, Traces, first_line, quiet


def export_program(
    model: nn.Module,
    example_input: Any,
    path: str | Path,
    *,
    force: bool = False,
    traces: Traces | None = None,
) -> tuple[str, ...]:
    """Save a model as .pt2, which ``torch.export.load`` opens without the model's own classes.

    Its call takes the tensors of the example input; numbers and texts beside them are frozen. It
    gives dicts in the place of output classes with named fields.

    Parameters
    ----------
    model, example_input
        Traced in eval mode on the CPU; the model itself stays as it is.
    path
        Ends in ``.pt2``. Written only after a process that has torch alone loaded the file and
        got the model's outputs, at batch 1 and 3 and at another size where these are free.
    force
        Whether an existing file is overwritten.
    traces
        Of this model and input, where a file of another kind is made of them too.

    Returns
    -------
    tuple of str
        The axes of the inputs that are free, such as ``("batch", "height", "width")``; the others
        are those of the example input.

    Raises
    ------
    ExportError
        If the model cannot be traced or the saved one differs from it.
    OutputError
        If the file exists or cannot be written.
    """
    with publishing(path, force) as temporary:
        return (traces or Traces(model, example_input)).first(
            lambda traced: _write(traced, temporary, path)
        )


def _write(traced: Traced, file: Path, path: str | Path) -> tuple[str, ...]:
    save_program(traced.program, file, path)
    compare(traced.called, [*traced.inputs()], file, "torch", path)
    return traced.axes.names


def save_program(program: ExportedProgram, file: Path, path: str | Path) -> None:
    """Write a program to a file that will be called ``path``.

    Raises
    ------
    ExportError
        If torch cannot save it.
    """
    try:
        with quiet():
            whole = BytesIO()  # where the disk is full, torch's own writer ends the process
            torch.export.save(program, whole)
        file.write_bytes(whole.getbuffer())
    except OSError:
        raise
    except Exception as error:  # torch.export has no error of its own for it
        raise ExportError(
            f"{path}: must be one that torch.export can save, got {first_line(error)}. Not written."
        ) from error
