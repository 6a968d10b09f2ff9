"""What a model's outputs mean, and how far two models' outputs are apart.

Each kind has a distance, which tuning lowers and searches compare, and a score in percent or as a
number, which the report shows:

=============  =======================================  =====================================
kind           distance                                 scores
=============  =======================================  =====================================
``logits``     KL divergence of the softmax on axis 1   ``agreement`` of the argmax, ``kl``
``multilabel`` KL divergence of each label's sigmoid    ``agreement`` of the signs, ``kl``
``embedding``  1 - cosine on axis 1                     ``cosine``
``values``     squared difference, relative             ``relative_difference``
=============  =======================================  =====================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from factorize.errors import DataError
from factorize.outputs import OUTPUT_KINDS, Outputs

Energy = Callable[[Tensor], Tensor]


def named_floats(output: Any) -> dict[str, Tensor]:
    """Every floating tensor of an output by name: nested lists, tuples, mappings, dataclasses.

    The name is the key or the field where there is one, else a number; ``""`` for a lone tensor.
    """
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        output = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    if isinstance(output, Mapping):
        parts = {str(key): value for key, value in output.items()}
    elif isinstance(output, (list, tuple)):
        parts = {str(index): value for index, value in enumerate(output)}
    else:
        parts = {"": output}
    found: dict[str, Tensor] = {}
    for name, part in parts.items():
        leaves = [v for v in tree_leaves(part) if isinstance(v, Tensor) and v.is_floating_point()]
        for index, leaf in enumerate(leaves):
            found[name if len(leaves) == 1 else f"{name}.{index}".lstrip(".")] = leaf
    return found


def kind_of(output: Tensor, kind: str) -> str:
    """The kind that one output is compared by.

    Parameters
    ----------
    kind
        As declared. ``auto``: (N, classes) with two classes or more are logits, others values. A
        declared kind is that of every output with a second axis; others are values.
    """
    if kind == "auto":
        return "logits" if output.ndim == 2 and output.shape[1] > 1 else "values"
    fits = output.ndim > 1 and (kind != "logits" or output.shape[1] > 1)
    return kind if fits else "values"


def energy_of(values: Tensor) -> Tensor:
    """Mean square of a batch."""
    return values.square().mean()


def relative(student: Tensor, teacher: Tensor, energy: Energy) -> Tensor:
    """Mean squared difference of two outputs of one shape, relative to the teacher's energy."""
    scale = energy(teacher).clamp_min(torch.finfo(teacher.dtype).tiny)
    return (student.to(teacher.dtype) - teacher).square().mean() / scale


def distance_of(
    student: Tensor,
    teacher: Tensor,
    kind: str,
    temperature: float = 1.0,
    energy: Energy = energy_of,
) -> Tensor:
    """Mean distance of two outputs of one shape, differentiable in the student; 0 where they agree.

    At temperature T a KL divergence is scaled by T^2, which keeps its gradient's size (Hinton
    2015).
    """
    kind = kind_of(teacher, kind)
    if kind == "values":
        return relative(student, teacher, energy)
    if kind == "embedding":
        return (1 - F.cosine_similarity(student.to(teacher.dtype), teacher, dim=1)).mean()
    t, s = teacher / temperature, student / temperature
    if kind == "multilabel":
        return temperature**2 * _bernoulli_kl(s, t).flatten(1).sum(1).mean()
    log_p, log_q = (F.log_softmax(_rows(v), dim=1) for v in (t, s))
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _rows(logits: Tensor) -> Tensor:
    """(N, classes, *positions) as (N * positions, classes)."""
    return logits.movedim(1, -1).flatten(0, -2)


def _bernoulli_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of each label's sigmoid."""
    p = teacher.sigmoid()
    off = F.logsigmoid(-teacher) - F.logsigmoid(-student)
    return p * (F.logsigmoid(teacher) - F.logsigmoid(student)) + (1 - p) * off


def agreement_of(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """Share of samples, or positions or labels of them, for which both decide alike."""
    if kind == "multilabel":
        return ((student > 0) == (teacher > 0)).double().mean()
    return (student.argmax(1) == teacher.argmax(1)).double().mean()


def own_loss(outputs: Outputs, student: Any, teacher: Any, batch: Any) -> Tensor:
    """The value of the user's own loss, ().

    Raises
    ------
    DataError
        It is no tensor with one value.
    """
    assert outputs.loss is not None
    value = outputs.loss(student, teacher, batch)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise DataError(
            f"loss {_name(outputs.loss)}: must return a tensor with one value for a batch, got "
            f"{got}. Take the mean over it."
        )
    return value.reshape(())


def own_score(outputs: Outputs, student: Any, teacher: Any, batch: Any) -> float:
    """The value of the user's own score.

    Raises
    ------
    DataError
        It is no number.
    """
    assert outputs.score is not None
    value: Any = outputs.score(student, teacher, batch)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise DataError(
            f"score {outputs.score_name}: must return a number for a batch, got {got}. Take the "
            "mean over it."
        ) from error


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def guess(output: Any, labels: Tensor | None) -> tuple[str, str | None]:
    """What a batch of outputs seems to be, and what to tell of a guess that may be wrong.

    Parameters
    ----------
    output
        Of the original model, for some images.
    labels
        Those of the images, as they came, or None.
    """
    found = named_floats(output)
    if len(found) != 1:
        return "auto", None
    (values,) = found.values()
    if kind_of(values, "auto") == "values":
        return "values", None
    told = "Declare --outputs, one of " + ", ".join(OUTPUT_KINDS) + ", where that is wrong"
    n, k = values.shape
    if labels is None or labels.shape not in ((n,), (n, k)):
        pass
    elif labels.is_floating_point() and not bool(((labels == 0) | (labels == 1)).all()):
        return "values", f"outputs are taken for values: the labels are numbers. {told}"
    elif labels.ndim == 1:
        return "logits", None
    else:
        one_hot = bool((labels.sum(1) == 1).all())
        kind, what = ("logits", "one-hot") if one_hot else ("multilabel", "multi-hot")
        return kind, f"outputs are taken for {kind}: the labels are {what}. {told}"
    norms = values.float().norm(dim=1)
    if bool((norms - 1).abs().max() < 1e-3) and bool((values < 0).any()):
        return "embedding", f"outputs are taken for an embedding: each has length 1. {told}"
    return "logits", f"outputs are taken for logits of {k} classes: no labels tell. {told}"
