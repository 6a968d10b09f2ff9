"""What a model's outputs are worth: against labels, and against those of another model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from factorize.errors import DataError
from factorize.outputs import UNDECLARED, Outputs
from factorize.tensor.call import batch_size, call, evaluating, input_on, model_on
from factorize.tensor.layout import forward
from factorize.tensor.output_kinds import (
    agreement_of,
    distance_of,
    kind_of,
    named_floats,
    own_loss,
    own_score,
)
from factorize.tensor.reference import Reference
from factorize.types import Batch

_OURS = ("top1", "top5", "loss", "agreement", "kl", "cosine")


def accuracy(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device | str = "cpu",
    reference: nn.Module | Reference | None = None,
    labelled: bool = True,
    classes: int | None = None,
    outputs: Outputs = UNDECLARED,
    progress: Callable[[int], object] | None = None,
) -> dict[str, float]:
    """Measure a model on a dataset, in one pass.

    Parameters
    ----------
    model, reference
        In eval mode meanwhile. One that is not on `device` is copied there.
    batches
        (images, labels) or (images,): images (N, C, ...), labels (N,) class indices.
    labelled
        Whether the batches' labels are to be used.
    classes
        How many classes the labels number, where they are used only with as many logits.
    outputs
        What the models' outputs mean.
    progress
        Called after each batch with the number of samples in it.

    Returns
    -------
    dict
        With labels, of (N, classes) logits: ``top1``, percent, and ``top5`` where there are over
        20 classes. With a reference model, by the kind of the first output: ``agreement``,
        percent of samples that both decide alike, and ``kl``, the mean KL divergence from the
        reference in nats; ``cosine``, the mean of embeddings; or ``relative_difference``,
        ||y - y_ref|| / ||y_ref||, of the output for which it is largest, and where there are
        several, of each by name. The means of the user's own score, and ``loss``. Models whose
        outputs differ in shape (a detector's) have nothing to compare.

    Raises
    ------
    DataError
        If there are no samples, labels are missing or do not fit the outputs, or there is
        neither a reference nor logits, and so nothing to measure.
    """
    if isinstance(reference, nn.Module):
        reference = Reference(reference, device)
    itself = reference is not None and reference.model is model
    running = model_on(model, device)
    scores = _Scores(outputs, classes)
    with evaluating(running):
        for batch in batches:
            if labelled and len(batch) < 2:
                raise DataError("dataset: has no labels. Pass batches of (images, labels).")
            images, size = input_on(batch[0], device), batch_size(batch[0])
            labels = batch[1].to(device) if labelled else None
            try:
                expected = None if reference is None else reference(images)
                output = expected if itself else forward(running, images)
            except Exception as error:  # whatever a model's forward may raise
                raise DataError(
                    f"dataset: the model must run on its batches, got for {_shape(images)} "
                    f"{type(error).__name__}: {' '.join(str(error).split())}. Give images of the "
                    "shape that it takes."
                ) from error
            scores.add(output, expected, labels, size, batch)
            if progress is not None:
                progress(size)
    return scores.result()


def _shape(images: Any) -> str:
    leaves = [v for v in tree_leaves(images) if isinstance(v, Tensor)]
    return "x".join(map(str, leaves[0].shape)) if leaves else type(images).__name__


def agreement_on_random_input(
    model: nn.Module,
    reference: nn.Module,
    example_input: Any,
    *,
    seed: int,
    samples: int,
    outputs: Outputs = UNDECLARED,
) -> dict[str, float]:
    """Compare two models on random normal input, where there is no data.

    Parameters
    ----------
    example_input
        One batch, on the models' device. Its floating tensors are replaced by random ones of
        their shape; anything else is passed on as it is.
    samples
        At least so many, in whole batches of the example's size.

    Returns
    -------
    dict
        What `accuracy` gives with a reference, but for what the user's own functions give.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        return torch.randn(value.shape, generator=generator).to(value)

    size = batch_size(example_input)
    scores = _Scores(replace(outputs, loss=None, score=None))
    with evaluating(model, reference):
        for _ in range(-(-samples // size)):
            inputs = tree_map(random, example_input)
            scores.add(call(model, inputs), call(reference, inputs), None, size)
    return scores.result()


def is_ours(name: str) -> bool:
    """Whether a value is one of `accuracy`'s, by its name."""
    return name.startswith("relative_difference") or name in _OURS


class _Scores:
    """Sums over batches; a sum that no batch could add to stays out of the result."""

    def __init__(self, outputs: Outputs, classes: int | None = None) -> None:
        self.outputs, self.classes = outputs, classes
        self.samples = 0
        self.sums: dict[str, float] = {}
        self.squares: dict[str, tuple[float, float]] = {}  # of differences and of the reference
        self.comparable = True

    def add(
        self, output: Any, expected: Any, labels: Tensor | None, samples: int, batch: Any = ()
    ) -> None:
        """Add one batch: a model's output, the reference's or None, and the labels or None."""
        self.samples += samples
        found = named_floats(output)
        first = next(iter(found.values()), None)
        kind = self._kind(output, first, samples)
        logits = first if kind == "logits" and first is not None and first.ndim == 2 else None
        if logits is not None and self.classes not in (None, logits.shape[1]):
            labels = None  # class folders number their classes otherwise
        if logits is None and expected is None:
            raise DataError(
                "model: outputs must be (batch, classes) logits to be measured with labels. "
                "Pass the model's own metric with --evaluate."
            )
        if logits is not None and labels is not None:
            self._add_labels(logits, labels)
        if expected is None:
            return
        if self.outputs.loss is not None:
            loss = own_loss(self.outputs, output, expected, batch)
            self._sum("loss", float(loss) * samples)
        if self.outputs.score is not None:
            value = own_score(self.outputs, output, expected, batch)
            self._sum(self.outputs.score_name, value * samples)
        wanted = named_floats(expected)
        if [v.shape for v in found.values()] != [v.shape for v in wanted.values()]:
            self.comparable = False
        elif kind == "values":
            self._add_differences(found, wanted)
        elif first is not None:
            self._add_comparison(first, next(iter(wanted.values())), kind, samples)

    def result(self) -> dict[str, float]:
        """Percentages and means over all samples."""
        if self.samples == 0:
            raise DataError("dataset: must hold at least one sample, got none. Check its path.")
        own = self.outputs.score_name if self.outputs.score is not None else None
        names = [name for name in (own, "top1", "top5", "loss") if name in self.sums]
        if self.comparable:
            names += [name for name in ("agreement", "kl", "cosine") if name in self.sums]
        percent = ("top1", "top5", "agreement")
        result = {
            name: self.sums[name] / self.samples * (100 if name in percent else 1) for name in names
        }
        if self.comparable and self.squares:
            each = {name: _ratio(*squares) for name, squares in self.squares.items()}
            result["relative_difference"] = max(each.values())
            if len(each) > 1:
                result |= {f"relative_difference {name}": one for name, one in each.items()}
        return result

    def _kind(self, output: Any, first: Tensor | None, samples: int) -> str:
        """A list is what detectors return, one entry for each image, and never logits."""
        declared = self.outputs.kind
        listed = declared == "auto" and isinstance(output, list)
        if first is None or listed or first.shape[:1] != (samples,):
            return "values"
        return kind_of(first, declared)

    def _add_labels(self, logits: Tensor, labels: Tensor) -> None:
        if labels.shape != logits.shape[:1]:
            raise DataError(
                f"labels: must be class indices of shape ({len(logits)},), got "
                f"{tuple(labels.shape)}. Pass the model's own metric with --evaluate."
            )
        low, high, classes = int(labels.min()), int(labels.max()), logits.shape[1]
        if low < 0 or high >= classes:
            raise DataError(
                f"labels: must be in 0..{classes - 1}, the model's classes, got "
                f"{low if low < 0 else high}. Check that dataset and model belong together."
            )
        self._sum("top1", (logits.argmax(1) == labels).sum())
        if classes > 20:
            self._sum("top5", (logits.topk(5).indices == labels[:, None]).sum())

    def _add_comparison(self, output: Tensor, expected: Tensor, kind: str, samples: int) -> None:
        distance = samples * distance_of(output.double(), expected.double(), kind)
        if kind == "embedding":
            self._sum("cosine", samples - distance)
            return
        self._sum("agreement", samples * agreement_of(output, expected, kind))
        self._sum("kl", distance)

    def _add_differences(self, outputs: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
        """Of each output by itself: a large one would hide what a small one misses."""
        for name, wanted in expected.items():
            difference, reference = self.squares.get(name, (0.0, 0.0))
            moved = (outputs[name].double() - wanted.double()).square().sum()
            squares = difference + float(moved), reference + float(wanted.double().square().sum())
            self.squares[name] = squares

    def _sum(self, name: str, value: Tensor | float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float(value)


def _ratio(difference: float, reference: float) -> float:
    return (difference / max(reference, torch.finfo(torch.float64).tiny)) ** 0.5
