"""Fits of whole plans, each made once, and what they are worth on held-out images."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator
from math import inf
from typing import Any

from torch import Tensor, nn

from factorize import methods
from factorize.fit import FitConfig, Fitted, apply_, fit
from factorize.graph import effective_weight
from factorize.measure import accuracy
from factorize.outputs import UNDECLARED
from factorize.search.held_out import Losses, losses_of
from factorize.system.stopwatch import Stopwatch
from factorize.tensor.call import batch_size
from factorize.tensor.reference import Reference
from factorize.tensor.threads import in_threads
from factorize.types import Batch, Data, Factorization, LayerPlan, Plan, Progress

HOLDOUT = 1000
"""Images that the losses of fitted nets are measured on."""


class Fits:
    """The fits of a search.

    Parameters
    ----------
    comparable
        Whether the outputs of two nets can be compared image by image; the user's own loss can.

    Attributes
    ----------
    can_judge
        Whether there are images to tell what a fitted net is worth.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        data: Data | None,
        config: FitConfig,
        comparable: bool = True,
        device: str,
        seed: int,
        progress: Progress | None,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self.model, self.data, self.config = model, data, config
        self.device, self.seed, self.progress = device, seed, progress
        self._stopwatch = stopwatch or Stopwatch()
        self.outputs = data.outputs if data else UNDECLARED
        self.can_judge = data is not None and (comparable or self.outputs.loss is not None)
        self._plans: dict[Hashable, Fitted] = {}
        self._known: dict[Hashable, Any] = {}  # of fits in sequence: plans begin alike
        self._layers: dict[Hashable, Factorization] = {}
        self._qualities: dict[Hashable, dict[str, float]] = {}
        self._losses: dict[Hashable, Losses] = {}
        self._reference = Reference(model, device, config.memory / 4)
        self._most = inf  # held-out images that there are, once they were all seen

    def of(self, plan: Plan) -> Fitted:
        """The fit of a plan."""
        key = tuple(layer.key for layer in plan.factorized)
        if key in self._plans:
            return self._plans[key]
        with self._stopwatch.timed("fit nets"):
            if self.config.resolved(self.data) == "weights" and not self.config.reconstruct:
                self._plans[key] = self._to_weights(plan)
            else:
                self._plans[key] = fit(
                    self.model, plan, self.config, data=self.data, device=self.device,
                    seed=self.seed, progress=self.progress, known=self._known,
                )  # fmt: skip
        return self._plans[key]

    def applied(self, plan: Plan) -> nn.Module:
        """A copy of the model with the plan's fit."""
        return apply_(copy.deepcopy(self.model), self.of(plan))

    def quality(self, plan: Plan, images: int = HOLDOUT) -> dict[str, float]:
        """Accuracy and distance to the original on so many, about, held-out training images."""
        key = images, *(layer.key for layer in plan.factorized)
        if key not in self._qualities:
            self._qualities[key] = self.quality_of(self.applied(plan), images)
        return self._qualities[key]

    def quality_of(self, model: nn.Module, images: int = HOLDOUT) -> dict[str, float]:
        """The same of any model."""
        assert self.data is not None
        return accuracy(
            model, self._held_out(images), device=self.device, reference=self.model,
            labelled=self.data.labelled, classes=self.data.classes, outputs=self.outputs,
        )  # fmt: skip

    def losses(self, plan: Plan, images: int = HOLDOUT) -> Losses:
        """How far the outputs are from the original's, on so many, about, held-out images."""
        layers = tuple(layer.key for layer in plan.factorized)
        if (min(images, self._most), layers) not in self._losses:
            net = self.applied(plan)
            with self._stopwatch.timed("judge nets"):
                found = losses_of(
                    net, self._reference, self._held_out(images), self.outputs, self.device
                )
            self._losses[min(images, self._most), layers] = found
        return self._losses[min(images, self._most), layers]

    def loss(self, plan: Plan) -> float:
        """Their mean."""
        return float(self.losses(plan).mean())

    def _held_out(self, images: int) -> Iterator[Batch]:
        assert self.data is not None
        count = 0
        for batch in self.data.holdout:
            yield batch
            count += batch_size(batch[0])
            if count >= images:
                return
        self._most = count

    def _to_weights(self, plan: Plan) -> Fitted:
        """Layer by layer: the next plan may want some of them again."""
        modules = dict(self.model.named_modules(remove_duplicate=False))
        missing = [layer for layer in plan.factorized if layer.key not in self._layers]
        missing.sort(key=lambda layer: layer.spec.params, reverse=True)  # what takes long first

        def made(asked: tuple[LayerPlan, Tensor]) -> Factorization:
            return methods.factorize(*asked, seed=self.seed)

        weights = ((layer, effective_weight(modules[layer.spec.name])) for layer in missing)
        with in_threads(made, weights) as results:
            for done, ((layer, _), found) in enumerate(results):
                self._layers[layer.key] = found
                if self.progress:
                    self.progress("factorize", done + 1, len(missing), {})
        return Fitted({layer.spec.name: self._layers[layer.key] for layer in plan.factorized})
