"""How far a compressed model's outputs are from the original's, in tuning and held out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from factorize.errors import DataError
from factorize.outputs import UNDECLARED, Outputs
from factorize.tensor.call import batch_size, evaluating, laid_out_
from factorize.tensor.layout import forward
from factorize.tensor.output_kinds import (
    Energy,
    distance_of,
    energy_of,
    kind_of,
    named_floats,
    own_loss,
    own_score,
)
from factorize.tensor.reference import Reference
from factorize.types import Data


class IncomparableError(DataError):
    """Two models' outputs cannot be compared; what only that is missing for may be skipped."""


def tensors(output: Any) -> list[Tensor]:
    """Every floating tensor of a model's output, as float32 or wider.

    Raises
    ------
    IncomparableError
        If there is none, or they are what a detector finds.
    """
    if isinstance(output, list) and any(isinstance(v, Mapping) for v in output):
        raise _incomparable("a dict per image, as of a detector")
    found = list(named_floats(output).values())
    if not found:
        raise IncomparableError(
            "model: its output must hold a floating tensor to be compared with the original's, "
            f"got {type(output).__name__}. Run without recalibration and fine-tuning."
        )
    return [v.float() if v.dtype.itemsize < 4 else v for v in found]


def uses_labels(data: Data, output: Tensor) -> bool:
    """Whether the labels can be the model's: it has logits, as many as there are class folders."""
    logits = output.ndim == 2 and kind_of(output, data.outputs.kind) == "logits"
    return data.labelled and logits and data.classes in (None, output.shape[1])


def distance(
    student: Any,
    teacher: Any,
    outputs: Outputs = UNDECLARED,
    batch: Any = (),
    temperature: float = 1.0,
    energy: Energy = energy_of,
) -> Tensor:
    """Mean distance over the batch, differentiable in the student; 0 where both agree.

    Where there are several outputs, their distances are summed. A student in train mode may have
    more outputs than the teacher (auxiliary heads come last): those without a counterpart do not
    count.

    Parameters
    ----------
    student, teacher
        Outputs of both models, as they are returned.
    outputs
        Their kind, or a loss of the user's own, for which `batch` is.

    Raises
    ------
    DataError
        If an output and its counterpart differ in shape, or the loss is no scalar tensor.
    """
    if outputs.loss is not None:
        return own_loss(outputs, student, teacher, batch)
    ours, theirs = tensors(student), tensors(teacher)
    total = ours[0].new_zeros(())
    for s, t in zip(ours, theirs, strict=False):
        if s.shape != t.shape:
            raise _incomparable(f"shapes {tuple(s.shape)} and {tuple(t.shape)}")
        total = total + distance_of(s, t, outputs.kind, temperature, energy)
    return total


def label_loss(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0, shares: Tensor | None = None
) -> Tensor:
    """Cross-entropy of logits (N, classes) with labels (N,), which may be on another device.

    Parameters
    ----------
    shares
        (n, N): how much of each image of the batch is in each of these; labels are of all N.

    Raises
    ------
    DataError
        If a label has no logit.
    """
    classes = logits.shape[1]
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"labels: must be in 0..{classes - 1} for a model with {classes} outputs, got "
            f"{low}..{high}. Give the data the model was trained on, or leave the labels out."
        )
    labels = labels.to(logits.device)
    wanted = (
        labels
        if shares is None
        else shares.to(logits.dtype) @ F.one_hot(labels, classes).to(logits.dtype)
    )
    return F.cross_entropy(logits, wanted, label_smoothing=smoothing)


def holdout_scores(
    model: nn.Module, reference: Reference, data: Data
) -> tuple[float, float | None]:
    """Distance to the original on the held-out images, and the score where there is one.

    The score, higher is better, is the user's own, or top-1 where labels can be used. Both models
    are run in eval mode, each image counts the same.
    """
    total, scored, count, labelled = 0.0, 0.0, 0, True
    outputs = data.outputs
    with evaluating(model):
        for batch in data.holdout:
            student, size = forward(model, batch[0]), batch_size(batch[0])
            teacher = reference(batch[0])
            total += float(distance(student, teacher, outputs, batch)) * size
            count += size
            if outputs.score is not None:
                value = own_score(outputs, student, teacher, batch)
                scored += outputs.sign * value * size
                continue
            logits = tensors(student)[0]
            labelled = labelled and uses_labels(data, logits)
            if labelled:
                scored += int((logits.argmax(1).cpu() == batch[1].cpu()).sum())
    if count == 0:
        raise DataError("holdout: needs at least one batch, got none. Hold more images out.")
    known = outputs.score is not None or labelled
    return total / count, scored / count if known else None


def _incomparable(found: str) -> IncomparableError:
    return IncomparableError(
        "model: its outputs must have the original's shapes for any input to be compared with "
        f"them, got {found}. Measure with --evaluate, and leave --finetune away."
    )


@contextmanager
def placed(device: str | torch.device, *models: nn.Module) -> Iterator[None]:
    """Hold the models on a device and in float32 or wider, and put each back as it was afterwards.

    In half precision small steps are lost and sums overflow. Only what parameters and buffers
    hold is exchanged, so that each stays itself, shared ones shared.
    """
    homes = [next((p.device for p in (*m.parameters(), *m.buffers())), None) for m in models]
    half: list[tuple[Any, str, torch.dtype]] = [
        (held, name, tensor.dtype)
        for model in models
        for module in model.modules()
        for held in (module._parameters, module._buffers)
        for name, tensor in held.items()
        if tensor is not None and tensor.dtype in (torch.float16, torch.bfloat16)
    ]
    try:
        for held, name, _ in half:
            held[name].data = held[name].data.float()
        for model in models:
            model.to(device)
        yield
    finally:
        for held, name, dtype in half:
            held[name].data = held[name].data.to(dtype)
        for model, home in zip(models, homes, strict=True):
            if home is not None:
                model.to(home)


@contextmanager
def channels_last(wanted: bool, *models: nn.Module) -> Iterator[None]:
    """Hold the models in that memory format, if it is wanted, and in torch's own afterwards."""
    if not wanted:
        yield
        return
    try:
        for model in models:
            laid_out_(model, torch.channels_last)
        yield
    finally:
        for model in models:
            laid_out_(model, torch.contiguous_format)
