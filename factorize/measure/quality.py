"""What a model's outputs are worth: against labels, and against those of another model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from factorize.errors import DataError
from factorize.tensor.call import batch_size, call, evaluating, model_dtype, model_on
from factorize.types import Batch


def accuracy(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device | str = "cpu",
    reference: nn.Module | None = None,
    labelled: bool = True,
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
    progress
        Called after each batch with the number of samples in it.

    Returns
    -------
    dict
        With labels: ``top1``, percent, and ``top5`` where there are over 20 classes. With a
        reference model: ``agreement``, percent of samples of one argmax, and ``kl``, the mean
        KL(reference || model) of the softmax in nats. A net whose outputs are not (N, classes)
        logits has only ``relative_difference``, ||y - y_ref|| / ||y_ref|| over all its outputs,
        and one whose outputs differ in shape from the reference's (a detector) has nothing.

    Raises
    ------
    DataError
        If there are no samples, labels are missing or do not fit the outputs, or there is
        neither a reference nor logits, and so nothing to measure.
    """
    models = [model_on(m, device) for m in (model, reference) if m is not None]
    scores = _Scores()
    with evaluating(*models):
        for batch in batches:
            if labelled and len(batch) < 2:
                raise DataError("dataset: has no labels. Pass batches of (images, labels).")
            images = batch[0].to(device)
            labels = batch[1].to(device) if labelled else None
            output, *expected = (
                m(images.to(model_dtype(m)) if images.is_floating_point() else images)
                for m in models
            )
            scores.add(output, expected[0] if expected else None, labels, len(images))
            if progress is not None:
                progress(len(images))
    return scores.result()


def agreement_on_random_input(
    model: nn.Module, reference: nn.Module, example_input: Any, *, seed: int, samples: int
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
        ``agreement`` and ``kl``, or ``relative_difference``, as in `accuracy`.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        return torch.randn(value.shape, generator=generator).to(value)

    size = batch_size(example_input)
    scores = _Scores()
    with evaluating(model, reference):
        for _ in range(-(-samples // size)):
            inputs = tree_map(random, example_input)
            scores.add(call(model, inputs), call(reference, inputs), None, size)
    return scores.result()


class _Scores:
    """Sums over batches; a sum that no batch could add to stays out of the result."""

    def __init__(self) -> None:
        self.samples = 0
        self.classes = 0
        self.sums: dict[str, float] = {}
        self.comparable = True

    def add(self, output: Any, expected: Any, labels: Tensor | None, samples: int) -> None:
        """Add one batch: a model's output, the reference's or None, and the labels or None."""
        self.samples += samples
        logits = _logits(output, samples)
        if logits is None and expected is None:
            raise DataError(
                "model: outputs must be (batch, classes) logits to be measured with labels. "
                "Pass the model's own metric with --evaluate."
            )
        if logits is not None:
            self.classes = logits.shape[1]
            if labels is not None:
                self._add_labels(logits, labels)
            if expected is not None:
                self._add_logits(logits, _logits(expected, samples))
        else:
            self._add_difference(_floats(output), _floats(expected))

    def result(self) -> dict[str, float]:
        """Percentages and means over all samples."""
        if self.samples == 0:
            raise DataError("dataset: must hold at least one sample, got none. Check its path.")
        sums = self.sums
        result = {
            name: 100 * sums[name] / self.samples for name in ("top1", "top5") if name in sums
        }
        if not self.comparable:
            return result
        if "agreement" in sums:
            result["agreement"] = 100 * sums["agreement"] / self.samples
            result["kl"] = sums["kl"] / self.samples
        if "reference" in sums:
            reference = max(sums["reference"], torch.finfo(torch.float64).tiny)
            result["relative_difference"] = (sums["difference"] / reference) ** 0.5
        return result

    def _add_labels(self, logits: Tensor, labels: Tensor) -> None:
        if labels.shape != logits.shape[:1]:
            raise DataError(
                f"labels: must be class indices of shape ({len(logits)},), got "
                f"{tuple(labels.shape)}. Pass the model's own metric with --evaluate."
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.classes:
            raise DataError(
                f"labels: must be in 0..{self.classes - 1}, the model's classes, got "
                f"{low if low < 0 else high}. Check that dataset and model belong together."
            )
        self._sum("top1", (logits.argmax(1) == labels).sum())
        if self.classes > 20:
            self._sum("top5", (logits.topk(5).indices == labels[:, None]).sum())

    def _add_logits(self, logits: Tensor, expected: Tensor | None) -> None:
        if expected is None or expected.shape != logits.shape:
            self.comparable = False
            return
        self._sum("agreement", (logits.argmax(1) == expected.argmax(1)).sum())
        log_p, log_q = (F.log_softmax(v.double(), 1) for v in (logits, expected))
        self._sum("kl", F.kl_div(log_p, log_q, reduction="sum", log_target=True))

    def _add_difference(self, outputs: list[Tensor], expected: list[Tensor]) -> None:
        if [v.shape for v in outputs] != [v.shape for v in expected]:
            self.comparable = False
            return
        for got, wanted in zip(outputs, expected, strict=True):
            self._sum("difference", (got.double() - wanted.double()).square().sum())
            self._sum("reference", wanted.double().square().sum())

    def _sum(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float(value)


def _logits(output: Any, samples: int) -> Tensor | None:
    """Return the first tensor of an output where it is (samples, classes), else None.

    A list is what detectors return, one entry per image, and never logits.
    """
    tensors = [] if isinstance(output, list) else _floats(output)
    if tensors and tensors[0].ndim == 2 and tensors[0].shape[0] == samples:
        return tensors[0] if tensors[0].shape[1] > 1 else None
    return None


def _floats(output: Any) -> list[Tensor]:
    """All floating tensors of an output: nested lists, tuples, mappings and dataclasses."""
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        output = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    elif isinstance(output, Mapping):
        output = dict(output)
    return [v for v in tree_leaves(output) if isinstance(v, Tensor) and v.is_floating_point()]
