"""What is tuned, and how fast."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from factorize.errors import UnsupportedLayerError


def trainable(model: nn.Module, original: nn.Module) -> list[nn.Parameter]:
    """List the parameters to tune.

    Raises
    ------
    UnsupportedLayerError
        If there is none, or the original would be tuned along.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise UnsupportedLayerError(
            "model: fine-tuning needs a parameter that requires a gradient, got none. "
            "Call model.requires_grad_(True) before."
        )
    if {id(p) for p in parameters} & {id(p) for p in original.parameters()}:
        raise UnsupportedLayerError(
            "model: it must share no trainable parameter with the original, which would be tuned "
            "along. Pass copy.deepcopy(original) as one of them."
        )
    return parameters


def decayed(parameters: list[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Group parameters for the optimizer: biases and norms, with one axis, do not decay."""
    flat = [p for p in parameters if p.ndim < 2]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": decay},
        {"params": flat, "weight_decay": 0.0},
    ]


def schedule(step: int, total: int) -> float:
    """Give the share of the peak learning rate: linear warm-up, then half a cosine to 0."""
    warmup = max(1, total // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
