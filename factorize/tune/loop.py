"""The training loop of fine-tuning: epochs, scores, checkpoints.

A run is a function of its configuration: the order of the images depends on (seed, epoch) alone,
and each step draws its random numbers from (seed, step). So no generator's state is to be saved,
and a resumed run equals an undisturbed one. Several processes do the same steps on parts of each
batch, and stop at the same step; the main one scores, saves and speaks.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from factorize.errors import DataError, ModelLoadError, ProcessError
from factorize.system import processes
from factorize.system.signals import Terminated, collected, uninterrupted
from factorize.tensor.reference import Reference
from factorize.tune import checkpoint
from factorize.tune.batch_norm import fix, together
from factorize.tune.distance import holdout_scores
from factorize.tune.order import Feed, length, ordered
from factorize.tune.recipe import FinetuneConfig
from factorize.tune.scalars import Scalars
from factorize.tune.step import Step
from factorize.types import Data, Progress

# Not of the fingerprint; the rate is there as it was asked for.
_OF_A_RUN = (
    "checkpoint", "resume", "checkpoint_minutes", "tensorboard", "tracker", "control", "lr",
)  # fmt: skip


class Training:
    """One fine-tuning run on an accelerator; see ``finetune`` for the arguments."""

    def __init__(
        self,
        model: nn.Module,
        reference: Reference,
        data: Data,
        config: FinetuneConfig,
        accelerator: Any,
        progress: Progress | None,
        score: Callable[[nn.Module], float] | None,
        origin: Mapping[str, Any],
        name: str,
    ) -> None:
        self.model, self.reference, self.data, self.config = model, reference, data, config
        self.device, self.score, self.name = accelerator.device, score, name
        self.accelerator = accelerator
        self.progress = progress if processes.is_main() else None
        self.per_epoch = length(data.train)
        self.step = Step(model, reference.model, data, config, accelerator)
        self.feed = Feed(data.train, accelerator.device)
        settings = {k: v for k, v in asdict(config).items() if k not in _OF_A_RUN}
        self.fingerprint = checkpoint.fingerprint(
            model, reference.model, **origin, **settings, data=data.source, batches=self.per_epoch
        )
        self.state = checkpoint.RunState(best=checkpoint.snapshot(model))
        self.stopped: str | None = None
        self.diverged = False
        self.saved = time.monotonic()
        self.saved_steps: int | None = None
        self.pressed: list[int] = []

    def run(self) -> bool:
        """Train, leave the model at its best, and return whether Ctrl-C cut the run short."""
        modes = [(module, module.training) for module in self.model.modules()]
        try:
            with ExitStack() as held:
                held.enter_context(together(self.model))
                self.scalars = held.enter_context(
                    Scalars(self.config.tensorboard, self.name, self.accelerator,
                            asdict(self.config))
                )  # fmt: skip
                devices = [self.device] if self.device.type == "cuda" else []
                held.enter_context(torch.random.fork_rng(devices))
                if processes.count() > 1:
                    self.pressed = held.enter_context(collected())
                self._epochs()
                self._heed(processes.total(torch.tensor(self._asked()).to(self.device)).tolist())
        except KeyboardInterrupt as pressed:
            self._save()
            if not self.state.history or isinstance(pressed, Terminated):
                raise
            self._compete()
            return True
        except RuntimeError as error:
            if processes.is_lost(error):
                raise self._alone() from error
            raise
        finally:
            self.model.load_state_dict(self.state.best)
            self.step.optimizer.zero_grad()
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
        while self.state.epoch < self.config.epochs and not self._is_patient_no_more():
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
        self.model.train()
        if config.batch_norm == "fixed":
            fix(self.model)
        with ordered(self.data.train, config.seed + state.epoch):
            batches = self.feed.batches(state.batch, self.per_epoch)
            while True:
                torch.manual_seed((config.seed * 1_000_003 + state.steps) % 2**63)
                start = time.monotonic()
                size, batch = next(batches, (0, ()))
                last = state.batch == self.per_epoch - 1 > 0
                if not size or (last and (size == 1 or size < processes.count())):
                    break  # a last batch of one image has no batch statistics
                if size < processes.count():
                    raise _too_small(size)
                with uninterrupted():
                    self._take(batch, size, start)
                if self.stopped:
                    return
                if time.monotonic() - self.saved > 60 * config.checkpoint_minutes:
                    self._save()
            if reason := state.losses.diverged(ends_epoch=True):
                self._stop(reason)

    def _take(self, batch: Any, size: int, start: float) -> None:
        """One step, and what it tells; raises Ctrl-C in all processes alike."""
        state, config = self.state, self.config
        total = config.epochs * self.per_epoch
        at = state.epoch * self.per_epoch + state.batch
        loss, blank, told = self.step(batch, size, at, total, self._asked())
        if not math.isfinite(loss):
            return self._stop(f"the loss was {loss} at step {state.steps + 1}")
        state.losses.add(loss, blank, size)
        state.loss_sum += loss
        state.batch += 1
        state.steps += 1
        state.images += size
        state.seconds += time.monotonic() - start
        if self.progress or self.scalars.on:
            values = {
                "epoch": state.epoch + 1.0,
                "loss": loss,
                "lr": self.step.optimizer.param_groups[0]["lr"],
                "images/s": state.images / max(state.seconds, 1e-9),
                "score": state.history[-1]["score"],
            }
            self.scalars.add(values, state.steps)
            if self.progress:
                self.progress(self.name, state.steps, total, values)
        self._heed(told)
        if reason := state.losses.diverged(ends_epoch=False):
            return self._stop(reason)
        return None

    def _asked(self) -> tuple[float, float]:
        """Whether Ctrl-C and SIGTERM came to this one of several processes."""
        return float(signal.SIGINT in self.pressed), float(signal.SIGTERM in self.pressed)

    def _heed(self, told: Sequence[float]) -> None:
        if any(told):
            raise Terminated if told[1] else KeyboardInterrupt

    def _stop(self, reason: str) -> None:
        self.stopped = f"{reason}; lower the learning rate, {self.config.peak:g}"
        self.diverged = True

    def _is_patient_no_more(self) -> bool:
        state, patience = self.state, self.config.patience
        if patience and state.epoch - state.best_epoch >= patience:
            self.stopped = f"no better score for {patience} epochs"
        return self.stopped is not None

    def _rate(self, entry: dict[str, float], ends_epoch: bool = False) -> None:
        """Score the weights as they are, and keep them if they are the best so far."""
        with self.step.averaged():
            far, value = processes.first(self._scores)
            state, key = self.state, (value, -far)  # among equal scores the closest to the original
            with uninterrupted():
                state.history.append({**entry, "score": value, "distance": far})
                self.scalars.add({"held-out score": value, "distance": far}, state.steps)
                counts = self.config.may_stay or entry["epoch"] > 0
                if counts and not any(map(math.isnan, key)) and key > state.best_key:
                    state.best, state.best_key = checkpoint.snapshot(self.model), key
                    state.best_epoch = entry["epoch"]
                if ends_epoch:
                    state.epoch, state.batch, state.loss_sum = state.epoch + 1, 0, 0.0

    def _scores(self) -> tuple[float, float]:
        far, top1 = holdout_scores(self.model, self.reference, self.data)
        if self.score is not None:
            return far, float(self.score(self.model))
        return far, -far if top1 is None else top1

    def _compete(self) -> None:
        """After Ctrl-C: let the weights as they are compete too."""
        state = self.state
        if state.batch:
            with suppress(KeyboardInterrupt):  # pressed again: no time for that
                self._rate({"epoch": self.epochs_done, "loss": state.loss_sum / state.batch})

    def _save(self) -> None:
        if self.config.checkpoint is None or not self.state.history or not processes.is_main():
            return
        content = {
            "fingerprint": self.fingerprint,
            "state": self.state.to_dict(),
            **self.step.state_dict(),
        }
        with uninterrupted():
            checkpoint.write(self.config.checkpoint, content)
        self.saved, self.saved_steps = time.monotonic(), self.state.steps

    def _resume(self) -> None:
        path = self.config.checkpoint
        if path is None:
            raise ModelLoadError("resume: a checkpoint must be given, got None. Set checkpoint.")
        content = processes.first(lambda: checkpoint.read(path, self.fingerprint))
        with uninterrupted():  # half of it would be saved as the state of the run
            self.state = checkpoint.RunState.from_dict(content["state"])
            self.step.load_state_dict(content)
            self.saved_steps = self.state.steps

    def _alone(self) -> ProcessError:
        kept = "No checkpoint was asked for: start again."
        if self.saved_steps is not None:
            kept = f"{self.config.checkpoint} of step {self.saved_steps} is kept, --resume goes on."
        return ProcessError(
            f"fine-tuning: another of the {processes.count()} processes ended at step "
            f"{self.state.steps + 1}. {kept}"
        )


def _too_small(size: int) -> DataError:
    count = processes.count()
    return DataError(
        f"train: a batch must have an image for each of the {count} processes, got {size}. Give "
        "larger batches, or start fewer processes."
    )
