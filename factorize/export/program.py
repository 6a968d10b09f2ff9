"""The model as a program: traced by ``torch.export``, which ONNX starts from too, and as .pt2."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_leaves, tree_map

from factorize.errors import ExportError
from factorize.export.publish import publishing
from factorize.tensor.call import batch_size, call, evaluating, input_on, model_dtype, model_on

_TOLERANCE = 1e-4  # largest relative difference of an exported model's outputs
_TOLERANCES = {torch.float16: 2e-2, torch.bfloat16: 1e-1}


def export_program(
    model: nn.Module, example_input: Any, path: str | Path, *, force: bool = False
) -> bool:
    """Save a model as .pt2, which ``torch.export.load`` opens without the model's own classes.

    Parameters
    ----------
    model, example_input
        Traced in eval mode on the CPU; the model itself stays as it is.
    path
        Ends in ``.pt2``. Written only after the saved file was loaded again and gave the
        model's outputs at batch 1 and 3.
    force
        Whether an existing file is overwritten.

    Returns
    -------
    bool
        Whether the batch size is free; else it is that of the example input.

    Raises
    ------
    ExportError
        If the model cannot be traced or the saved one differs from it.
    OutputError
        If the file exists or cannot be written.
    """
    with publishing(path, force) as temporary:
        program, dynamic = trace(model, example_input)
        try:
            with quiet():
                whole = BytesIO()  # where the disk is full, torch's own writer ends the process
                torch.export.save(program, whole)
                temporary.write_bytes(whole.getbuffer())
                loaded = torch.export.load(temporary).module()
        except OSError:
            raise
        except Exception as error:  # torch.export has no error of its own for it
            raise ExportError(
                f"{path}: must be one that torch.export can load again, got {first_line(error)}. "
                "Not written."
            ) from error

        def run(inputs: Any) -> list[Tensor]:
            with torch.no_grad(), quiet():
                return tree_leaves(call(loaded, inputs))

        compare(model, run, example_input, dynamic, str(path))
    return dynamic


def trace(model: nn.Module, example_input: Any) -> tuple[ExportedProgram, bool]:
    """Trace a model on the CPU; also return whether its batch size is free.

    A model that cannot take any batch size is traced with that of the example input.
    """
    values = _arguments(example_input)
    if not all(isinstance(value, Tensor) for value in values):
        raise ExportError(
            "export: every input must be a tensor, got "
            f"{', '.join(type(value).__name__ for value in values)}. "
            "Wrap the model in one whose forward takes tensors."
        )
    model, example_input = model_on(model, "cpu"), input_on(example_input, "cpu")
    several = with_batch(example_input, max(2, batch_size(example_input)))  # 1 becomes a constant
    try:
        return _trace(model, several, dynamic=True), True
    except Exception:  # torch.export has no error of its own for it
        try:
            return _trace(model, example_input, dynamic=False), False
        except Exception as error:
            raise ExportError(
                f"export: torch.export must be able to trace the model, got {first_line(error)}. "
                "Make its control flow independent of its data."
            ) from error


def _trace(model: nn.Module, example_input: Any, *, dynamic: bool) -> ExportedProgram:
    shapes = None
    if dynamic:
        batch, size = Dim("batch"), batch_size(example_input)
        axes = [{0: batch} if _batched(v, size) else {} for v in _arguments(example_input)]
        shapes = tuple(axes)
        if isinstance(example_input, Mapping):
            shapes = dict(zip(example_input, axes, strict=True))
    keywords = dict(example_input) if isinstance(example_input, Mapping) else {}
    arguments = () if keywords else _arguments(example_input)
    with evaluating(model), quiet():
        return torch.export.export(model, arguments, keywords, dynamic_shapes=shapes, strict=False)


def compare(
    model: nn.Module,
    run: Callable[[Any], list[Any]],
    example_input: Any,
    dynamic: bool,
    path: str | Path,
) -> tuple[float, float, float]:
    """Compare an exported model with the original on random input, at batch 1 and 3.

    Parameters
    ----------
    run
        The exported model: an input to the list of its outputs.
    dynamic
        Whether any batch size will do; else it is compared at that of the example input.

    Returns
    -------
    max_abs, max_rel, tolerance
        Largest difference of any output element, absolute and as a share of the largest element
        of its output tensor; and the most that the latter may be.
    """
    tolerance = _TOLERANCES.get(model_dtype(model), _TOLERANCE)
    model, example_input = model_on(model, "cpu"), input_on(example_input, "cpu")
    generator = torch.Generator().manual_seed(0)
    max_abs = max_rel = 0.0
    for samples in (1, 3) if dynamic else (batch_size(example_input),):
        inputs = with_batch(example_input, samples, generator)
        with evaluating(model):
            expected = [v for v in tree_leaves(call(model, inputs)) if isinstance(v, Tensor)]
        try:
            outputs = [torch.as_tensor(v) for v in run(inputs)]
        except Exception as error:
            raise ExportError(
                f"{path}: must run at batch {samples}, got {first_line(error)}. Not written."
            ) from error
        shapes, wanted = [tuple(v.shape) for v in outputs], [tuple(v.shape) for v in expected]
        if shapes != wanted:
            raise ExportError(
                f"{path}: outputs must have the model's shapes {wanted} at batch {samples}, got "
                f"{shapes}. Not written."
            )
        for got, want in zip(outputs, expected, strict=True):
            if want.numel() == 0:
                continue
            difference = float((got.double() - want.double()).abs().max())
            scale = max(float(want.double().abs().max()), torch.finfo(torch.float32).tiny)
            max_abs, max_rel = max(max_abs, difference), max(max_rel, difference / scale)
            if not difference / scale <= tolerance:  # so that NaN fails too
                raise ExportError(
                    f"{path}: outputs must equal the model's within {tolerance:g} of the largest "
                    f"at batch {samples}, got {difference / scale:.3g}. Not written."
                )
    return max_abs, max_rel, tolerance


def with_batch(example_input: Any, samples: int, generator: torch.Generator | None = None) -> Any:
    """Return the example input with another batch size: its own samples again, or random ones."""
    size = batch_size(example_input)

    def resize(value: Any) -> Any:
        if not _batched(value, size):
            return value
        if generator is not None and value.is_floating_point():
            return torch.randn((samples, *value.shape[1:]), generator=generator).to(value)
        return value[torch.arange(samples) % size]

    return tree_map(resize, example_input)


def first_line(error: BaseException) -> str:
    """Return what is at the root of an error, as one line without colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = re.sub(r"\x1b\[\d*m", "", str(error)).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' progress and deprecation notices off the console."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield


def _arguments(example_input: Any) -> tuple[Any, ...]:
    """Return the values that `call` passes to a model, positional or by keyword."""
    if isinstance(example_input, Mapping):
        return tuple(example_input.values())
    return example_input if isinstance(example_input, tuple) else (example_input,)


def _batched(value: Any, size: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == size
