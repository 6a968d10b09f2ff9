"""What goes into the model and what the original makes of it, told before any long work.

Wrong preprocessing shows here in seconds, and nowhere else until the end.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict
from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from factorize.measure import worth
from factorize.onnx_graph import Twin, check_batch
from factorize.report.words import is_percent, quality_name, quality_text
from factorize.run.records import Request
from factorize.tensor.call import batch_size
from factorize.types import Batch, Data, Preprocessing

LOOKED_AT = 256  # images at most, in whole batches

log = logging.getLogger(__name__)


def first_look(request: Request) -> dict[str, Any]:
    """What goes in, for the report; it is logged, with what the original scores on it.

    Returns
    -------
    dict
        ``shape`` of one sample, ``dtype``; ``minimum``, ``maximum``, ``mean`` and ``std`` of the
        values; ``preprocessing``, where it is known; ``images``: how many were looked at. Empty
        without data.
    """
    data = request.data
    if data is None:
        return {}
    batches = _first(data.holdout)
    if isinstance(request.model, Twin) and batches:
        check_batch(request.model, batches[0][0])
    found = _described(batches, data)
    if not found:
        return {}
    if data.made_up and data.notes:
        log.info("images: %s", data.notes[0])
    log.info("input: %s", _input_line(found, data.preprocessing))
    values = _values(request, data, batches)
    if scores := _scores(values, data):
        doubt = _doubt(values.get("top1"), _labels(batches))
        log.info("original: %s on %d held-out images%s", scores, found["images"], doubt)
    return found


def _first(holdout: Iterable[Batch]) -> list[Batch]:
    batches: list[Batch] = []
    for batch in holdout:
        batches.append(batch)
        if sum(batch_size(one[0]) for one in batches) >= LOOKED_AT:
            break
    return batches


def _described(batches: list[Batch], data: Data) -> dict[str, Any]:
    listed = [isinstance(batch[0], list) for batch in batches]  # a detector's images, one by one
    values = [
        (one if alone else one[0], one)
        for batch, alone in zip(batches, listed, strict=True)
        for one in tree_leaves(batch[0])
        if isinstance(one, Tensor) and one.is_floating_point() and one.numel()
    ]
    if not values:
        return {}
    sample, first = values[0]
    numbers = torch.cat([one.flatten().float() for _, one in values if one.dtype == first.dtype])
    return {
        "shape": list(sample.shape),
        "dtype": str(first.dtype).removeprefix("torch."),
        "minimum": float(numbers.min()),
        "maximum": float(numbers.max()),
        "mean": float(numbers.mean()),
        "std": float(numbers.std(correction=0)),
        "preprocessing": data.preprocessing and asdict(data.preprocessing),
        "images": sum(batch_size(batch[0]) for batch in batches),
    }


def _input_line(found: dict[str, Any], steps: Preprocessing | None) -> str:
    shape = "x".join(map(str, found["shape"]))
    spread = "{minimum:.3g} to {maximum:.3g} (mean {mean:.3g}, std {std:.3g})".format_map(found)
    return f"{shape} {found['dtype']}, {spread}; {_in_words(steps)}"


def _in_words(steps: Preprocessing | None) -> str:
    if steps is None:
        return "as the data yields them"
    words = [] if steps.resize is None else [f"resized to {steps.resize}"]
    words += [] if steps.crop is None else [f"cropped to {steps.crop}"]
    if set(steps.mean) == {0} and set(steps.std) == {1}:
        return ", ".join([*words, "pixels / 255, not normalised"])
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (steps.mean, steps.std))
    return ", ".join([*words, "pixels / 255", f"normalised by mean ({mean}) and std ({std})"])


def _values(request: Request, data: Data, batches: list[Batch]) -> dict[str, float]:
    one = Data(batches, batches, labelled=data.labelled, classes=data.classes, outputs=data.outputs)
    return worth(
        request.reference, request.model, request.example_input, metric=None, data=one,
        device=request.device, seed=request.seed,
    )  # fmt: skip


def _labels(batches: list[Batch]) -> Tensor:
    """(N,); none where they are not a number for each sample."""
    found = [one[1] for one in batches if len(one) > 1]
    numbers = [one for one in found if isinstance(one, Tensor) and one.ndim == 1]
    return torch.cat(numbers) if numbers else torch.empty(0)


def _scores(values: dict[str, float], data: Data) -> str:
    """What is known of the original alone; beside itself it agrees with itself."""
    own = {"top1", "top5", data.outputs.score_name if data.outputs.score else ""}
    return ", ".join(
        f"{quality_name(name)} {quality_text(name, value)}"
        for name, value in values.items()
        if name in own and (is_percent(name) or name == data.outputs.score_name)
    )


def _doubt(top1: float | None, labels: Tensor) -> str:
    """What to ask where labels (N,) are hardly met more often than by guessing."""
    classes = int(labels.max()) + 1 if top1 is not None and labels.numel() else 1
    if top1 is None or classes < 2:
        return ""
    chance = 1 / classes
    likely = chance + 2 * sqrt(chance * (1 - chance) / len(labels))  # two standard errors above it
    return (
        "" if top1 > 100 * likely else ", as by guessing: are --mean, --std and the labels right?"
    )
