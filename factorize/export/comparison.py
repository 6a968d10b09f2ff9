"""An exported file beside the model: the file runs in a process of its own, as it will later."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from factorize.errors import ExportError
from factorize.export.alone import run_alone
from factorize.export.plain_call import PlainCall
from factorize.export.traces import first_line
from factorize.tensor.call import evaluating, model_dtype

TOLERANCE = 1e-4  # largest relative difference of an exported model's outputs
TOLERANCES = {torch.float16: 2e-2, torch.bfloat16: 1e-1}


def compare(
    called: PlainCall,
    inputs: Sequence[list[Tensor]],
    file: Path,
    runtime: str,
    path: str | Path,
    *,
    half: bool = False,
    fed: Callable[[list[Tensor]], list[Tensor]] = list,
) -> tuple[float, float, float]:
    """Compare a file with the model that it was made of, on inputs of several sizes.

    Parameters
    ----------
    called, inputs
        The model, and what it is called with.
    file
        The file as it is now, in a folder of its own.
    runtime
        What the process that runs it has: ``"torch"`` or ``"onnxruntime"``.
    path
        What the file will be called.
    half
        Whether the file computes in float16, whatever the model does.
    fed
        The tensors of one call as the file takes them.

    Returns
    -------
    max_abs, max_rel, tolerance
        Largest difference of any output element, absolute and as a share of the largest element
        of its output tensor; and the most that the latter may be.

    Raises
    ------
    ExportError
        The file does not run alone, or its outputs differ.
    """
    model = called.model
    tolerance = TOLERANCES.get(torch.float16 if half else model_dtype(model), TOLERANCE)
    expected = []
    for one in inputs:
        try:
            with evaluating(model):
                leaves = tree_leaves(called(one))
        except Exception as error:
            raise ExportError(
                f"{path}: the model must take inputs of {_sizes(one)}, got {first_line(error)}. "
                "Not written."
            ) from error
        expected.append([v for v in leaves if isinstance(v, Tensor)])
    max_abs = max_rel = 0.0
    made = _alone(called, inputs, file, runtime, path, fed)
    for one, want, got in zip(inputs, expected, made, strict=True):
        wanted, shapes = [tuple(v.shape) for v in want], [tuple(v.shape) for v in got]
        if shapes != wanted:
            raise ExportError(
                f"{path}: outputs must have the model's shapes {wanted} for {_sizes(one)}, got "
                f"{shapes}. Not written."
            )
        for ours, theirs in zip(got, want, strict=True):
            if theirs.numel() == 0:
                continue
            difference = float((ours.double() - theirs.double()).abs().max())
            scale = max(float(theirs.double().abs().max()), torch.finfo(torch.float32).tiny)
            max_abs, max_rel = max(max_abs, difference), max(max_rel, difference / scale)
            if not difference / scale <= tolerance:  # so that NaN fails too
                raise ExportError(
                    f"{path}: outputs must equal the model's within {tolerance:g} of the largest "
                    f"for {_sizes(one)}, got {difference / scale:.3g}. Not written."
                )
    return max_abs, max_rel, tolerance


def _alone(
    called: PlainCall,
    inputs: Sequence[list[Tensor]],
    file: Path,
    runtime: str,
    path: str | Path,
    fed: Callable[[list[Tensor]], list[Tensor]],
) -> list[list[Tensor]]:
    """Run a file on inputs in a process that has imported nothing but its runtime."""
    with tempfile.TemporaryDirectory() as exchange:
        given, made, error, log = (
            Path(exchange, name) for name in ("inputs", "outputs", "error", "log")
        )
        if runtime == "torch":
            whole = BytesIO()  # where the disk is full, torch's own writer does not say so
            torch.save([called.arguments(one) for one in inputs], whole)
            given.write_bytes(whole.getbuffer())
        else:
            arrays = _numbered([[v.numpy() for v in fed(one)] for one in inputs])
            with given.open("wb") as out:
                np.savez(out, **arrays)
        code = run_alone(runtime, Path(exchange), file, len(inputs))
        if code or error.exists() or not made.exists():
            text = error.read_text("utf-8") if error.exists() else f"exit code {code}"
            said = log.read_text("utf-8", errors="replace") if log.exists() else ""
            # torch logs what was wrong with a file, and raises that something was.
            text = (re.findall(r"(?:\] |^)[\w.]+Error: (.+)", said, re.M) or [text])[-1]
            raise ExportError(
                f"{path}: must load and run in a process that has {runtime} alone, got "
                f"{first_line(RuntimeError(text))}. Not written."
            )
        if runtime == "torch":
            return torch.load(made, weights_only=True)
        with np.load(made) as outputs:
            return [
                [torch.as_tensor(outputs[key]) for key in outputs if key.startswith(f"{call}.")]
                for call in range(len(inputs))
            ]


def _numbered(calls: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Name each array by the number of its call and its own."""
    return {f"{call}.{i}": v for call, one in enumerate(calls) for i, v in enumerate(one)}


def _sizes(tensors: list[Tensor]) -> str:
    return ", ".join("x".join(map(str, v.shape)) for v in tensors)
