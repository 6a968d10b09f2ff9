"""What a net loses on held-out images, image by image, so that two nets can be told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from factorize.errors import DataError
from factorize.outputs import Outputs
from factorize.tensor.call import batch_size, evaluating, input_on, model_on
from factorize.tensor.layout import forward
from factorize.tensor.output_kinds import distance_of, kind_of, named_floats, own_loss
from factorize.types import Batch

Losses = NDArray[np.float64]
"""One for each image, or for each batch where a loss is of batches; their mean is the net's."""


def losses_of(
    model: nn.Module,
    reference: Callable[[Any], Any],
    batches: Iterable[Batch],
    outputs: Outputs,
    device: str,
) -> Losses:
    """How far each image's outputs are from those that the reference gives for its batch.

    Of values, the squared difference relative to the mean square over all images, of the output
    for which it is largest.

    Raises
    ------
    DataError
        There are no images, or the outputs of the two differ in shape and the user gave no loss.
    """
    found: dict[str, list[Tensor]] = {}
    energies: dict[str, list[Tensor]] = {}
    sizes: list[int] = []
    model = model_on(model, device)
    with evaluating(model):
        for batch in batches:
            images = input_on(batch[0], device)
            sizes.append(batch_size(images))
            expected = reference(images)
            output = forward(model, images)
            if outputs.loss is not None:
                value = own_loss(outputs, output, expected, batch).reshape(1)
                found.setdefault("", []).append(value.double().cpu())
                continue
            pair = named_floats(output), named_floats(expected)
            if [v.shape for v in pair[0].values()] != [v.shape for v in pair[1].values()]:
                raise DataError(
                    "model: its outputs for an image differ in shape from the original's, so that "
                    "nothing tells what was lost. Give a loss of your own."
                )
            kind = _kind(expected, pair[1], outputs, sizes[-1])
            for name, (one, other) in _compared(*pair, kind).items():
                if kind == "values":
                    found.setdefault(name, []).append(_squares(one - other, sizes[-1]))
                    energies.setdefault(name, []).append(_squares(other, sizes[-1]))
                else:
                    rows = zip(one.split(1), other.split(1), strict=True)
                    each = torch.stack([distance_of(a, b, kind) for a, b in rows])
                    found.setdefault(name, []).append(each)
    if not found:
        raise DataError("dataset: must hold at least one sample, got none. Check its path.")
    losses = {name: torch.cat(parts).numpy() for name, parts in found.items()}
    for name, parts in energies.items():
        losses[name] /= max(float(torch.cat(parts).mean()), np.finfo(float).tiny)
    largest = max(losses.values(), key=lambda one: one.mean())
    if len(largest) == len(sizes):  # the last batch may be a small one
        largest = largest * np.array(sizes) / np.mean(sizes)
    return np.nan_to_num(largest, nan=np.inf, posinf=np.inf)


def standard_error(losses: Losses, others: Losses) -> float:
    """Of the difference of two nets' means, on the same images; 0 for one image, which has none."""
    if len(losses) < 2:
        return 0.0
    return float((losses - others).std(ddof=1)) / len(losses) ** 0.5


def _kind(expected: Any, floats: Mapping[str, Tensor], outputs: Outputs, samples: int) -> str:
    """As `accuracy` has it: a list, or what has no row for each image, are values."""
    first = next(iter(floats.values()), None)
    listed = outputs.kind == "auto" and isinstance(expected, list)
    if first is None or listed or first.shape[:1] != (samples,):
        return "values"
    return kind_of(first, outputs.kind)


def _compared(
    floats: Mapping[str, Tensor], expected: Mapping[str, Tensor], kind: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """All outputs that are values; the first one of what decides."""
    pairs = zip(expected, floats.values(), expected.values(), strict=True)
    every = {name: (one.double().cpu(), other.double().cpu()) for name, one, other in pairs}
    return every if kind == "values" else dict(list(every.items())[:1])


def _squares(values: Tensor, samples: int) -> Tensor:
    """Summed for each image, or over the batch where there is no row for each."""
    by_image = values.ndim > 0 and len(values) == samples
    return values.square().reshape(samples if by_image else 1, -1).sum(1)
