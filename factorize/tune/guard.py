"""What a training loop needs around it: an Accelerator of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

TRACKED = "runs"
"""Folder of trackers that write files, in the current one."""


@contextmanager
def accelerator_on(
    device: str, precision: str = "auto", tracker: str | None = None
) -> Iterator[Any]:
    """Make an Accelerator on ``"cpu"`` or ``"cuda"``, whatever the process has made before.

    accelerate keeps one state per process, in which device and precision are fixed: it is put
    aside for the run and put back after it.

    Parameters
    ----------
    tracker
        Of the run, see `scalars.TRACKERS`; nothing is logged before `Scalars` starts it.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    shared = [kind._shared_state for kind in (GradientState, AcceleratorState, PartialState)]
    aside = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    if precision == "auto":
        half = "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported() else "float16"
        precision = half if device == "cuda" else "float32"
    names = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
    try:
        yield Accelerator(
            cpu=device == "cpu", mixed_precision=names[precision], log_with=tracker,
            project_dir=TRACKED if tracker else None,
        )  # fmt: skip
    finally:
        for state, content in zip(shared, aside, strict=True):
            state.clear()
            state.update(content)
