"""Fine-tuning by distillation: the compressed model learns to answer as the original does.

Loss: for logits the KL divergence to the original's at temperature T, times T^2 (Hinton 2015);
for other outputs, and the features of replaced layers, the squared difference relative to the
original's; plus, where there are labels, their cross-entropy. After each epoch the model is scored
on the held-out images, and it ends with the best weights so far, those it came with included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import nn

from factorize.errors import DataError
from factorize.system import processes
from factorize.tensor.reference import KEPT, Reference
from factorize.tune.distance import channels_last, holdout_scores, placed
from factorize.tune.guard import accelerator_on
from factorize.tune.loop import Training
from factorize.tune.order import length
from factorize.tune.recipe import FinetuneConfig
from factorize.tune.scalars import check_tracker
from factorize.types import Data, Progress


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
    stopped, diverged
        Why the run ended early of itself, or None; whether that was a loss that rose and rose.
    lr
        The peak that was used.
    seconds
        Spent on training steps, those before a resume included.
    """

    epochs_done: float
    steps: int
    best_epoch: float
    history: tuple[dict[str, float], ...]
    interrupted: bool
    stopped: str | None
    diverged: bool
    seconds: float
    images_per_second: float
    device: str
    mixed_precision: str
    lr: float
    batch_norm: str
    processes: int


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
    name: str = "fine-tuning",
) -> FinetuneResult:
    """Tune ``model`` in place to answer as ``original``; it ends with its best held-out score.

    ``original`` is frozen and in eval mode, ``model`` in train mode. Models in half precision are
    tuned in float32 and end as they were. Labels count only where there are as many classes as
    logits. Ctrl-C ends the run early and keeps the best so far.

    In a job of several processes (``accelerate launch``, ``torchrun``) each calls this, with the
    same arguments: they share each batch, and batch norms see all of it, so that without dropout
    and mixing the result is that of one process but for rounding.

    Parameters
    ----------
    device
        ``"cpu"`` or ``"cuda"``. Both models return to where they were.
    progress
        Called after each step: ``progress("fine-tuning", steps done, steps in all, values)``
        with values ``epoch``, ``loss``, ``lr``, ``images/s`` and the last ``score``.
    score
        model -> float, higher is better. By default top-1 where the labels can be used, else
        minus the distance to the original's outputs.
    origin
        How `model` was made: a run whose model was made otherwise does not resume from this one's
        checkpoint. Strings and numbers by name.
    name
        Of the run, for `progress` and scalars.

    Raises
    ------
    DataError
        If ``data.train`` has no length, a label is out of range, or the outputs do not compare.
    UnsupportedLayerError
        If no parameter requires a gradient, or the two models share one.
    ModelLoadError
        If the checkpoint to resume from is missing, damaged or of another run: other settings,
        data or models, of which each value counts.
    ProcessError
        If another process of the job ended.
    """
    if config.tracker is not None:
        check_tracker(config.tracker)
    processes.join(device)
    with (
        accelerator_on(device, config.precision, config.tracker) as accelerator,
        placed(accelerator.device, model, original),
        channels_last(config.channels_last, model, original),
    ):
        length(data.train)  # what cannot be tuned on is told before anything is computed
        origin = {**origin, "lr": config.lr}
        reference = Reference(original, accelerator.device, KEPT)
        if config.lr is None:
            with suppress(DataError):  # the first scores of the training tell it too
                start = processes.first(lambda: holdout_scores(model, reference, data)[0])
                config = config.near(start)
        training = Training(
            model, reference, data, config, accelerator, progress, score, origin, name
        )
        interrupted = training.run()
        state = training.state
        return FinetuneResult(
            epochs_done=training.epochs_done,
            steps=state.steps,
            best_epoch=state.best_epoch,
            history=tuple(state.history),
            interrupted=interrupted,
            stopped=training.stopped,
            diverged=training.diverged,
            seconds=state.seconds,
            images_per_second=state.images / state.seconds if state.seconds else 0.0,
            device=str(accelerator.device),
            mixed_precision=accelerator.mixed_precision,
            lr=config.peak,
            batch_norm="fixed" if config.batch_norm == "fixed" else "batch",
            processes=processes.count(),
        )
