"""One step of fine-tuning: a batch in, the weights moved, by one process or by several together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from factorize.system import processes
from factorize.system.signals import uninterrupted
from factorize.tensor.call import batch_size, call, rows_of, to_model
from factorize.tune.augment import mixed, moved
from factorize.tune.objective import Objective
from factorize.tune.optimizer import Average, optimizer_of, pace, trainable
from factorize.tune.recipe import FinetuneConfig
from factorize.types import Batch, Data


class Step:
    """Moves a model; see `finetune` for the arguments."""

    def __init__(
        self, model: nn.Module, original: nn.Module, data: Data, config: FinetuneConfig,
        accelerator: Any,
    ) -> None:  # fmt: skip
        self.model, self.config, self.accelerator = model, config, accelerator
        self.parameters = trainable(model, original)
        self.optimizer = accelerator.prepare(optimizer_of(self.parameters, config))
        self.objective = Objective(model, original, data, config)
        processes.spread(model)
        self.average = Average(model, config.ema) if config.ema else None
        student, teacher = model, original
        if config.compile:
            student, teacher = torch.compile(student), torch.compile(original)
        self.student, self.teacher = self._cast(student), self._cast(teacher)

    def _cast(self, model: Any) -> Any:
        def called(images: Any) -> Any:
            with self.accelerator.autocast():
                return call(model, images)

        return called

    def __call__(
        self, batch: Batch, size: int, step: int, total: int, flags: tuple[float, ...] = ()
    ) -> tuple[float, float, tuple[float, ...]]:
        """Take one step, unless the loss is not finite.

        Parameters
        ----------
        batch
            This process's part of it.
        size
            Of the whole batch.
        step, total
            Number of this step, from 0, and of all steps.
        flags
            Summed over the processes on the way.

        Returns
        -------
        The loss, that of a model that always answers zeros, and the flags.
        """
        config = self.config
        pace(self.optimizer, config, step, total)
        images = moved(to_model(batch[0], self.model), config, size, processes.part(size))
        if processes.count() > 1:  # from here on each process draws for its own images
            torch.manual_seed(torch.initial_seed() + processes.rank())
        images, shares = mixed(images, config)
        if config.channels_last and isinstance(images, Tensor) and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        labels = batch[1] if len(batch) > 1 else None
        self.optimizer.zero_grad()
        sums = torch.zeros(2 + len(flags), dtype=torch.float64)
        # As many parts in all processes, which wait for each other in each; of two images at least.
        parts = min(config.micro_batches, max(1, size // processes.count() // 2))
        for chunk in torch.arange(batch_size(images)).tensor_split(parts):
            rows = slice(int(chunk[0]), int(chunk[-1]) + 1)
            loss, blank = self.objective(
                self.student, self.teacher, rows_of(images, rows),
                labels if shares is not None else rows_of(labels, rows),
                None if shares is None else shares[rows],
            )  # fmt: skip
            share = len(chunk) / size
            self.accelerator.backward(loss * share)
            sums[:2] += share * torch.stack([loss.detach(), blank]).double().cpu()
        processes.add_gradients(self.parameters)
        sums[2:] = torch.tensor(flags, dtype=torch.float64)
        value, blank, *told = processes.total(sums.to(self.accelerator.device)).tolist()
        if math.isfinite(value):
            if config.max_grad_norm:
                self.accelerator.clip_grad_norm_(self.parameters, config.max_grad_norm)
            self.optimizer.step()
            if self.average:
                self.average.add(step)
        return value, blank, tuple(told)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model have the averaged weights, where there are any."""
        swapped = False
        try:
            with uninterrupted():  # half of them exchanged would be saved as the state of the run
                if self.average:
                    self.average.swap()
                    swapped = True
            yield
        finally:
            with uninterrupted():
                if self.average and swapped:
                    self.average.swap()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        scaler = self.accelerator.scaler
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "average": self.average and self.average.held,
        }

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Put it back."""
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.accelerator.scaler is not None and content["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        if self.average:
            for key, value in content["average"].items():
                self.average.held[key].copy_(value)
