"""What is tuned, by which optimizer, and how fast."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from factorize.errors import UnsupportedLayerError
from factorize.tune.recipe import FinetuneConfig

RISE = 0.3  # of a one-cycle run
MOMENTA = 0.85, 0.95  # at the peak of the learning rate, and at its ends


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


def optimizer_of(parameters: list[nn.Parameter], config: FinetuneConfig) -> torch.optim.Optimizer:
    """Make the optimizer; biases and norms, with one axis, do not decay."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.peak)
    nesterov = config.momentum > 0
    return torch.optim.SGD(groups, lr=config.peak, momentum=config.momentum, nesterov=nesterov)


def pace(optimizer: Any, config: FinetuneConfig, step: int, total: int) -> float:
    """Set the learning rate, and the momentum of one-cycle, of a step; return the rate."""
    if config.schedule == "cosine":
        share, momentum = _cosine(step, total, config.warmup), None
    else:
        share, momentum = _one_cycle(step, total)
    for group in optimizer.param_groups:
        group["lr"] = config.peak * share
        if momentum is not None and "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        elif momentum is not None:
            group["momentum"] = momentum
    return config.peak * share


def _cosine(step: int, total: int, warmup: float) -> float:
    """The share of the peak: a linear rise, then half a cosine to 0."""
    rising = max(1, round(warmup * total))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def _one_cycle(step: int, total: int) -> tuple[float, float]:
    """The share of the peak and the momentum: each by half a cosine there and back (Smith 2018)."""
    rising = max(1.0, RISE * total - 1)
    done = step / rising if step <= rising else (step - rising) / max(1.0, total - 1 - rising)
    near = 0.5 * (1 - math.cos(math.pi * min(1.0, done)))  # how far this half has come
    height = near if step <= rising else 1 - near
    ends = 1 / 25 if step <= rising else 1 / 250_000
    low, high = MOMENTA
    return ends + (1 - ends) * height, high - (high - low) * height


class Average:
    """Moving average of a model's weights and statistics."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.held = {key: value.detach().clone() for key, value in _tensors(model).items()}

    def add(self, step: int) -> None:
        """Take the weights after ``step`` steps in."""
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for key, value in _tensors(self.model).items():
                if value.is_floating_point():
                    self.held[key].lerp_(value, 1 - decay)
                else:
                    self.held[key].copy_(value)

    def swap(self) -> None:
        """Exchange the model's values and the averages; a second call puts them back."""
        with torch.no_grad():
            for key, value in _tensors(self.model).items():
                kept = value.clone()
                value.copy_(self.held[key])
                self.held[key].copy_(kept)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Each one once: exchanging a shared one by each of its names would mix it up."""
    state = model.state_dict(keep_vars=True)
    names = {id(v): k for k, v in reversed(state.items()) if isinstance(v, Tensor)}
    return {name: state[name] for name in names.values()}
