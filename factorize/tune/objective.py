"""The loss of a batch: distances to the original's outputs and features, and to the labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from factorize.errors import DataError, UnsupportedLayerError
from factorize.system import processes
from factorize.tensor.call import evaluating
from factorize.tensor.output_kinds import relative
from factorize.tune.distance import distance, label_loss, tensors, uses_labels
from factorize.tune.recipe import FinetuneConfig
from factorize.types import Data

Call = Callable[[Any], Any]


class Objective:
    """What one batch is worth; means are over the batch of all processes."""

    def __init__(
        self, model: nn.Module, original: nn.Module, data: Data, config: FinetuneConfig
    ) -> None:
        self.original, self.data, self.config = original, data, config
        self.pairs: list[tuple[nn.Module, nn.Module]] = []
        if config.feature_weight:
            self.pairs = _replaced(model, original)

    def __call__(
        self, student: Call, teacher: Call, images: Any, labels: Tensor | None,
        shares: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The loss, and what a model that always answers zeros would have.

        Parameters
        ----------
        student, teacher
            The two models as they are called.
        labels
            (N,), or None; of the whole batch where there are shares.
        shares
            (n, N): how much of each image of the batch is in each of these, or None.
        """
        config = self.config
        with evaluating(self.original), _recorded([t for _, t in self.pairs]) as wanted:
            target = teacher(images) if self._teaches else None
        with _recorded([s for s, _ in self.pairs]) as features:
            answer = student(images)
        output = tensors(answer)
        loss = output[0].new_zeros(())
        blank = output[0].new_zeros(())
        if config.logit_weight:
            batch = (images,) if labels is None else (images, labels)
            far = partial(
                distance, outputs=self.data.outputs, batch=batch, temperature=config.temperature,
                energy=_energy,
            )  # fmt: skip
            loss = loss + config.logit_weight * far(answer, target)
            with torch.no_grad():
                nothing = tree_map_only(Tensor, torch.zeros_like, target)
                blank = blank + config.logit_weight * far(nothing, target)
        if labels is not None and config.label_weight and uses_labels(self.data, output[0]):
            right = partial(
                label_loss, labels=labels, smoothing=config.label_smoothing, shares=shares
            )
            loss = loss + config.label_weight * right(output[0])
            with torch.no_grad():
                blank = blank + config.label_weight * right(torch.zeros_like(output[0]))
        if self.pairs:
            far_off = [relative(s, t, _energy) for s, t in zip(features, wanted, strict=True)]
            loss = loss + config.feature_weight * torch.stack(far_off).mean()
            blank = blank + config.feature_weight
        if not loss.requires_grad:
            raise DataError(
                "label_weight: must have labels of the model's classes where nothing else counts, "
                "got none. Give the data the model was trained on, or a logit_weight."
            )
        return loss, blank.detach()

    @property
    def _teaches(self) -> bool:
        return bool(self.config.logit_weight or self.pairs)


def _energy(values: Tensor) -> Tensor:
    """Mean square over the batch of all processes."""
    square = values.detach().square().sum(dtype=torch.float64)
    square, count = processes.total(torch.stack([square, torch.full_like(square, values.numel())]))
    return (square / count).to(values.dtype)


def _replaced(model: nn.Module, original: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """The layers of a model that stand for another one of the original, with that one.

    Raises
    ------
    UnsupportedLayerError
        If there is none.
    """
    tuned = dict(model.named_modules())
    pairs = [
        (tuned[name], layer)
        for name, layer in original.named_modules()
        if name in tuned and type(tuned[name]) is not type(layer)
    ]
    if not pairs:
        raise UnsupportedLayerError(
            "feature_weight: needs layers that were replaced, to compare with the original's, got "
            "none. Leave feature_weight out of the recipe."
        )
    return pairs


@contextmanager
def _recorded(layers: list[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the outputs of layers in the order in which they are called."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        seen.append(output.float() if output.dtype.itemsize < 4 else output)

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
