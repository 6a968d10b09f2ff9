"""What the twins of files have in common: torch modules that compute what a file's graph does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

LEFT_ALONE = "left_alone"
"""Attribute of a module that must stay: the reason, in words."""


class BatchNorm(_BatchNorm):
    """A batch norm over any number of axes."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def joined(values: Sequence[Tensor]) -> Tensor:
    """What a graph gave for each of several samples, together."""
    return torch.cat([*values]) if values[0].ndim else torch.stack([*values])


def told_by_reason(alone: Iterable[tuple[str, str]]) -> Iterator[str]:
    """What has weights and is no layer of a twin's, each with its reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in alone:
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"{names[0]}{more} left alone: {reason}"
