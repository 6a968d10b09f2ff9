"""Fine-tuning by distillation: the compressed model learns to answer as the original does.

Loss: for logits the KL divergence to the original's at temperature T, times T^2 (Hinton 2015),
plus, where there are labels, their cross-entropy times ``label_weight``; for other outputs the
squared difference relative to the original's. After each epoch the model is scored on the
held-out images, and it ends with the best weights so far, those it came with included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from factorize.errors import DataError
from factorize.tune.distance import placed
from factorize.tune.guard import accelerator_on
from factorize.tune.loop import Training
from factorize.types import Data, Progress


@dataclass(frozen=True)
class FinetuneConfig:
    """How to fine-tune, with AdamW. The batch size is the training loader's.

    Attributes
    ----------
    lr
        Peak learning rate: reached after 5 % of the steps, falls to 0 along a half cosine.
    weight_decay
        Of weights with two axes or more; biases and batch-norm parameters have none.
    temperature, label_weight
        Of the loss, see the head of this file.
    checkpoint
        Written before the first epoch, after each, every ``checkpoint_minutes`` and on Ctrl-C.
    resume
        Go on from ``checkpoint``.
    """

    epochs: int
    lr: float = 2e-3
    weight_decay: float = 1e-4
    temperature: float = 2.0
    label_weight: float = 0.1
    max_grad_norm: float = 1.0
    seed: int = 0
    checkpoint: Path | None = None
    resume: bool = False
    checkpoint_minutes: float = 5.0

    def __post_init__(self) -> None:
        """Refuse numbers that no run can have."""
        if self.epochs < 0:
            raise DataError(f"epochs: must be 0 or more, got {self.epochs}. Correct --finetune.")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise DataError(
                f"lr: the learning rate must be above 0 and finite, got {self.lr}. Try 0.002."
            )


@dataclass(frozen=True)
class FinetuneResult:
    """What came of it.

    Attributes
    ----------
    epochs_done, best_epoch
        With a fraction where the run was cut short; ``best_epoch`` 0 means that the model has
        the weights it came with.
    history
        For each scored epoch: ``epoch``, ``score`` (higher is better), ``distance`` to the
        original's held-out outputs and, but for epoch 0, the mean training ``loss``.
    interrupted
        By Ctrl-C.
    stopped
        Why the run ended early of itself, or None.
    seconds
        Spent on training steps, those before a resume included.
    """

    epochs_done: float
    steps: int
    best_epoch: float
    history: tuple[dict[str, float], ...]
    interrupted: bool
    stopped: str | None
    seconds: float
    images_per_second: float
    device: str
    mixed_precision: str


def finetune(
    model: nn.Module,
    original: nn.Module,
    data: Data,
    config: FinetuneConfig,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
    score: Callable[[nn.Module], float] | None = None,
    origin: Mapping[str, Any] = {},
) -> FinetuneResult:
    """Tune ``model`` in place to answer as ``original``; it ends with its best held-out score.

    ``original`` is frozen and in eval mode, ``model`` in train mode. Models in half precision are
    tuned in float32 and end as they were. Labels count only where there are as many classes as
    logits. Ctrl-C ends the run early and keeps the best so far.

    Parameters
    ----------
    device
        ``"cpu"``, or ``"cuda"`` in mixed precision: bfloat16, or float16 where that is missing.
        Both models return to where they were.
    progress
        Called after each step: ``progress("fine-tuning", steps done, steps in all, values)``
        with values ``epoch``, ``loss``, ``lr`` and the last ``score``.
    score
        model -> float, higher is better. By default top-1 where the labels can be used, else
        minus the distance to the original's outputs.
    origin
        How `model` was made: a run whose model was made otherwise does not resume from this one's
        checkpoint. Strings and numbers by name.

    Raises
    ------
    DataError
        If ``data.train`` has no length, a label is out of range, or the outputs do not compare.
    UnsupportedLayerError
        If no parameter requires a gradient, or the two models share one.
    ModelLoadError
        If the checkpoint to resume from is missing, damaged or of another run: other settings,
        data or models, of which each value counts.
    """
    with placed(device, model, original), accelerator_on(device) as accelerator:
        training = Training(model, original, data, config, accelerator, progress, score, origin)
        interrupted = training.run()
        state = training.state
        return FinetuneResult(
            epochs_done=training.epochs_done,
            steps=state.steps,
            best_epoch=state.best_epoch,
            history=tuple(state.history),
            interrupted=interrupted,
            stopped=training.stopped,
            seconds=state.seconds,
            images_per_second=state.images / state.seconds if state.seconds else 0.0,
            device=str(accelerator.device),
            mixed_precision=accelerator.mixed_precision,
        )
