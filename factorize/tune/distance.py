"""How far a compressed model's outputs are from the original's: the loss, and the label-free score.

Logits, (N, classes) with two classes or more, are compared by the KL divergence of their
distributions; any other output by its squared difference relative to the original's. Where there
are several outputs, their distances are summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from factorize.errors import DataError
from factorize.tensor.call import evaluating, laid_out_, model_dtype
from factorize.types import Data


def tensors(output: Any) -> list[Tensor]:
    """Every floating tensor of a model's output, as float32 or wider.

    Raises
    ------
    DataError
        If there is none, or they are what a detector finds.
    """
    if isinstance(output, list) and any(isinstance(v, Mapping) for v in output):
        raise _incomparable("a dict per image, as of a detector")
    found = [v for v in tree_leaves(output) if isinstance(v, Tensor) and v.is_floating_point()]
    if not found:
        raise DataError(
            "model: its output must hold a floating tensor to be compared with the original's, "
            f"got {type(output).__name__}. Run without recalibration and fine-tuning."
        )
    return [v.float() if v.dtype.itemsize < 4 else v for v in found]


def is_logits(output: Tensor) -> bool:
    """Whether an output is taken for logits: (N, classes), at least two classes."""
    return output.ndim == 2 and output.shape[1] > 1


def uses_labels(data: Data, output: Tensor) -> bool:
    """Whether the labels can be the model's: it has logits, as many as the data has classes."""
    classes = data.classes
    return data.labelled and is_logits(output) and classes in (None, output.shape[1])


def energy_of(values: Tensor) -> Tensor:
    """Mean square of a batch."""
    return values.square().mean()


def relative(student: Tensor, teacher: Tensor, energy: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean squared difference of two outputs of one shape, relative to the teacher's energy."""
    scale = energy(teacher).clamp_min(torch.finfo(teacher.dtype).tiny)
    return (student.to(teacher.dtype) - teacher).square().mean() / scale


def distance(
    student: list[Tensor],
    teacher: list[Tensor],
    temperature: float = 1.0,
    energy: Callable[[Tensor], Tensor] = energy_of,
) -> Tensor:
    """Mean distance over the batch, differentiable in the student; 0 where both agree.

    A student in train mode may have more outputs than the teacher (auxiliary heads come last):
    those without a counterpart do not count. At temperature T the KL divergence is scaled by
    T^2, which keeps its gradient's size.

    Raises
    ------
    DataError
        If an output and its counterpart differ in shape.
    """
    total = student[0].new_zeros(())
    for s, t in zip(student, teacher, strict=False):
        if s.shape != t.shape:
            raise _incomparable(f"shapes {tuple(s.shape)} and {tuple(t.shape)}")
        if is_logits(t):
            log_p, log_q = (F.log_softmax(v / temperature, dim=1) for v in (t, s))
            kl = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
            total = total + temperature**2 * kl
        else:
            total = total + relative(s, t, energy)
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
    # On another device lie those of pixels, which were checked when they were loaded.
    low, high = (int(labels.min()), int(labels.max())) if labels.device.type == "cpu" else (0, 0)
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


def holdout_scores(model: nn.Module, original: nn.Module, data: Data) -> tuple[float, float | None]:
    """Distance to the original on the held-out images, and top-1 where labels can be used.

    Both models are run in eval mode, each image counts the same.
    """
    total, right, count, labelled = 0.0, 0, 0, True
    with evaluating(model, original):
        for batch in data.holdout:
            images = to_model(batch[0], model)
            student, teacher = tensors(model(images)), tensors(original(images))
            total += float(distance(student, teacher)) * len(images)
            count += len(images)
            labelled = labelled and uses_labels(data, student[0])
            if labelled:
                right += int((student[0].argmax(1).cpu() == batch[1].cpu()).sum())
    if count == 0:
        raise DataError("holdout: needs at least one batch, got none. Hold more images out.")
    return total / count, right / count if labelled else None


def to_model(images: Tensor, model: nn.Module) -> Tensor:
    """Bring images to the device and the dtype a model computes in."""
    device = next((p.device for p in (*model.parameters(), *model.buffers())), images.device)
    return images.to(device, model_dtype(model), non_blocking=True)


def _incomparable(found: str) -> DataError:
    return DataError(
        "model: its outputs must have the original's shapes for any input to be compared with "
        f"them, got {found}. Leave --data away and measure with --evaluate."
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
