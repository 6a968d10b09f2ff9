"""What a training loop needs around it: whole steps under Ctrl-C, and an Accelerator of its own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block is done, so that a step is taken whole or not at all."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield  # Python delivers signals to the main thread only
        return
    held: list[Any] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if held:
        previous(*held[0])


@contextmanager
def accelerator_on(device: str) -> Iterator[Any]:
    """Make an Accelerator on ``"cpu"`` or ``"cuda"``, whatever the process has made before.

    accelerate keeps one state per process, in which device and precision are fixed: it is put
    aside for the run and put back after it.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    shared = [kind._shared_state for kind in (GradientState, AcceleratorState, PartialState)]
    aside = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    precision = "no"
    if device == "cuda":
        precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    try:
        yield Accelerator(cpu=device == "cpu", mixed_precision=precision)
    finally:
        for state, content in zip(shared, aside, strict=True):
            state.clear()
            state.update(content)
