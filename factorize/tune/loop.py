"""The training loop of fine-tuning: epochs, steps, scores, checkpoints.

A run is a function of its configuration: the order of the images depends on (seed, epoch) alone,
and each step draws its random numbers from (seed, step). So no generator's state is to be saved,
and a resumed run equals an undisturbed one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from factorize.errors import ModelLoadError
from factorize.signals import Terminated, uninterrupted
from factorize.tensor.call import evaluating
from factorize.tune import checkpoint
from factorize.tune.distance import (
    distance,
    holdout_scores,
    label_loss,
    tensors,
    to_model,
    uses_labels,
)
from factorize.tune.optimizer import decayed, schedule, trainable
from factorize.tune.order import from_batch, length, ordered
from factorize.types import Batch, Data, Progress

if TYPE_CHECKING:
    from factorize.tune.finetune import FinetuneConfig


class Training:
    """One fine-tuning run on an accelerator; see ``finetune`` for the arguments."""

    def __init__(
        self,
        model: nn.Module,
        original: nn.Module,
        data: Data,
        config: FinetuneConfig,
        accelerator: Any,
        progress: Progress | None,
        score: Callable[[nn.Module], float] | None,
        origin: Mapping[str, Any],
    ) -> None:
        self.model, self.original, self.data, self.config = model, original, data, config
        self.accelerator, self.progress, self.score = accelerator, progress, score
        self.parameters = trainable(model, original)
        self.per_epoch = length(data.train)
        self.optimizer = accelerator.prepare(
            torch.optim.AdamW(decayed(self.parameters, config.weight_decay), lr=config.lr)
        )
        settings = asdict(config)
        for key in ("checkpoint", "resume", "checkpoint_minutes"):
            del settings[key]
        self.fingerprint = checkpoint.fingerprint(
            model, original, **settings, **origin, data=data.source, batches=self.per_epoch
        )
        self.state = checkpoint.RunState(best=checkpoint.snapshot(model))
        self.stopped: str | None = None
        self.saved = time.monotonic()

    def run(self) -> bool:
        """Train, leave the model at its best, and return whether Ctrl-C cut the run short."""
        modes = [(module, module.training) for module in self.model.modules()]
        device = self.accelerator.device
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                self._epochs()
        except KeyboardInterrupt as pressed:
            self._save()
            if not self.state.history or isinstance(pressed, Terminated):
                raise
            self._compete()
            return True
        finally:
            self.model.load_state_dict(self.state.best)
            self.optimizer.zero_grad()
            for module, training in modes:
                module.training = training
        return False

    @property
    def epochs_done(self) -> float:
        """Epochs trained, with a fraction."""
        return self.state.epoch + self.state.batch / self.per_epoch

    def _epochs(self) -> None:
        if self.config.resume:
            self._resume()
        if not self.state.history:
            self._rate({"epoch": 0.0})
            self._save()  # in place of an earlier run's, which is not to be resumed from now on
        while self.state.epoch < self.config.epochs:
            self._train()
            if self.stopped:
                return
            state = self.state
            loss = state.loss_sum / max(1, state.batch)
            self._rate({"epoch": state.epoch + 1.0, "loss": loss}, ends_epoch=True)
            self._save()

    def _train(self) -> None:
        """Take the steps of one epoch that are still to be taken."""
        state, config = self.state, self.config
        total = config.epochs * self.per_epoch
        self.model.train()
        with ordered(self.data.train, config.seed + state.epoch):
            batches = from_batch(self.data.train, state.batch, self.per_epoch)
            while True:
                torch.manual_seed((config.seed * 1_000_003 + state.steps) % 2**63)
                start = time.monotonic()
                batch = next(batches, None)
                if batch is None or (len(batch[0]) == 1 and state.batch):
                    break  # a last batch of one image has no batch statistics
                lr = config.lr * schedule(state.epoch * self.per_epoch + state.batch, total)
                with uninterrupted():
                    loss = self._step(batch, lr)
                    if not math.isfinite(loss):
                        self.stopped = (
                            f"the loss was {loss} at step {state.steps + 1}; lower the learning "
                            f"rate, {config.lr:g}"
                        )
                        return
                    state.loss_sum += loss
                    state.batch += 1
                    state.steps += 1
                    state.images += len(batch[0])
                    state.seconds += time.monotonic() - start
                if self.progress:
                    values = {"epoch": state.epoch + 1.0, "loss": loss, "lr": lr}
                    values["score"] = state.history[-1]["score"]
                    self.progress("fine-tuning", state.steps, total, values)
                if time.monotonic() - self.saved > 60 * config.checkpoint_minutes:
                    self._save()

    def _step(self, batch: Batch, lr: float) -> float:
        images = to_model(batch[0], self.model)
        with self.accelerator.autocast():
            student = tensors(self.model(images))
            with evaluating(self.original):
                teacher = tensors(self.original(images))
        loss = distance(student, teacher, self.config.temperature)
        if uses_labels(self.data, student[0]):
            loss = loss + self.config.label_weight * label_loss(student[0], batch[1])
        value = loss.item()
        if math.isfinite(value):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.zero_grad()
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
            self.optimizer.step()
        return value

    def _rate(self, entry: dict[str, float], ends_epoch: bool = False) -> None:
        """Score the weights as they are, and keep them if they are the best so far."""
        far, top1 = holdout_scores(self.model, self.original, self.data)
        if self.score is not None:
            value = float(self.score(self.model))
        else:
            value = -far if top1 is None else top1
        state, key = self.state, (value, -far)  # among equal scores the closest to the original
        with uninterrupted():
            state.history.append({**entry, "score": value, "distance": far})
            if not any(map(math.isnan, key)) and key > state.best_key:
                state.best, state.best_key = checkpoint.snapshot(self.model), key
                state.best_epoch = entry["epoch"]
            if ends_epoch:
                state.epoch, state.batch, state.loss_sum = state.epoch + 1, 0, 0.0

    def _compete(self) -> None:
        """After Ctrl-C: let the weights as they are compete too."""
        state = self.state
        if state.batch:
            with suppress(KeyboardInterrupt):  # pressed again: no time for that
                self._rate({"epoch": self.epochs_done, "loss": state.loss_sum / state.batch})

    def _save(self) -> None:
        if self.config.checkpoint is None or not self.state.history:
            return
        scaler = self.accelerator.scaler
        content = {
            "fingerprint": self.fingerprint,
            "state": dict(vars(self.state)),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        with uninterrupted():
            checkpoint.write(self.config.checkpoint, content)
        self.saved = time.monotonic()

    def _resume(self) -> None:
        if self.config.checkpoint is None:
            raise ModelLoadError("resume: a checkpoint must be given, got None. Set checkpoint.")
        content = checkpoint.read(self.config.checkpoint, self.fingerprint)
        with uninterrupted():  # half of it would be saved as the state of the run
            self.state = checkpoint.RunState(**content["state"])
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            if self.accelerator.scaler is not None and content["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(content["scaler"])
