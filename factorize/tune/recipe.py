"""What fine-tuning is told: all settings, and the recipe file that holds them."""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from factorize.errors import DataError

LR = {"adamw": 2e-3, "sgd": 0.05}
FAR = 0.1
"""Distance of a start, KL in nats or relative squared, from which on the default rate is right."""
LEAST_SHARE = 0.02  # of the default rate: with less nothing would be learned at all
SCHEDULES = ("cosine", "one_cycle")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
BATCH_NORMS = ("auto", "batch", "fixed")
_OF_A_RUN = (
    "checkpoint",
    "resume",
    "checkpoint_minutes",
    "tensorboard",
    "tracker",
)  # not of a recipe


@dataclass(frozen=True)
class FinetuneConfig:
    """How to fine-tune. The training loader's batch is that of one step, of all processes together.

    Attributes
    ----------
    optimizer
        ``adamw``, or ``sgd`` with Nesterov's `momentum`.
    lr
        The peak; None: 2e-3 for AdamW, 0.05 for SGD, and less where the start is close to the
        original already, see `near`.
    weight_decay
        Of weights with two axes or more; biases and norms have none.
    schedule, warmup
        ``cosine``: a linear rise over the share `warmup` of the steps, then half a cosine to 0.
        ``one_cycle`` (Smith 2018): from lr/25 by half a cosine to the peak at 30 % of the steps, by
        another down to lr/250,000, the momentum (AdamW: beta 1) from 0.95 to 0.85 and back.
    max_grad_norm
        Gradients are clipped to this norm; 0: not at all.
    ema
        Decay per step of the moving average of the weights, which then is what is scored and kept;
        in the first steps it is shorter, (1 + step) / (10 + step). 0: none.
    logit_weight, temperature
        Of the distance to the original's outputs.
    feature_weight
        Of the distance to the original's outputs of the replaced layers, their mean.
    label_weight, label_smoothing
        Of the cross-entropy, where there are labels.
    flip, crop
        Images are mirrored at random, and shifted by up to so many pixels each way (reflected at
        the border).
    mixup, cutmix
        Alpha of these augmentations (Zhang 2018, Yun 2019); with both, one of them for each batch.
    batch_norm
        ``batch``: as in training, batch norms normalise by the batch, and their running statistics
        follow. ``fixed``: by the statistics they came with. ``auto``: of a net that was just
        compressed, ``fixed`` where new statistics were found to be no better (`recalibrate`): those
        of the batch would undo its fit to outputs. Otherwise ``batch``.
    micro_batches
        Parts that a batch is split into, one after the other, to save memory, of two images at
        least. Batch norms see a part alone.
    precision
        ``auto``: mixed precision on CUDA, bfloat16 or float16 where that is missing, else float32.
    channels_last, compile
        Memory format; ``torch.compile`` of both models.
    may_stay
        Whether the weights that the model came with may be the best. The original has often been
        trained on the held-out images too, and what is close to it shares that advantage there.
    patience
        End after so many epochs without a better score; 0: never.
    control
        Tune the original too, with the same settings: what it gains is not the factorization's.
    checkpoint
        Written before the first epoch, after each, every `checkpoint_minutes` and on Ctrl-C.
    resume
        Go on from `checkpoint`.
    tensorboard
        Folder for scalars.
    tracker
        ``wandb``, ``mlflow``, ``trackio`` or ``tensorboard``, through accelerate: scalars and
        settings go there, to the project ``factorize``; what is a file, to the folder ``runs``.
    """

    epochs: int
    lr: float | None = None
    optimizer: str = "adamw"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    warmup: float = 0.05
    max_grad_norm: float = 1.0
    ema: float = 0.0
    logit_weight: float = 1.0
    temperature: float = 2.0
    feature_weight: float = 0.0
    label_weight: float = 0.1
    label_smoothing: float = 0.0
    flip: bool = False
    crop: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    batch_norm: str = "auto"
    micro_batches: int = 1
    precision: str = "auto"
    channels_last: bool = False
    compile: bool = False
    may_stay: bool = True
    patience: int = 0
    control: bool = True
    seed: int = 0
    checkpoint: Path | None = None
    resume: bool = False
    checkpoint_minutes: float = 5.0
    tensorboard: Path | None = None
    tracker: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        if self.epochs < 0:
            raise DataError(f"epochs: must be 0 or more, got {self.epochs}. Correct --finetune.")
        for name, known in (
            ("optimizer", tuple(LR)), ("schedule", SCHEDULES), ("precision", PRECISIONS),
            ("batch_norm", BATCH_NORMS),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise DataError(
                    f"{name}: must be {' or '.join(known)}, got {getattr(self, name)!r}. Correct "
                    "the recipe."
                )
        if not (self.peak > 0 and math.isfinite(self.peak)):
            raise DataError(
                f"lr: the learning rate must be above 0 and finite, got {self.lr}. Try 0.002."
            )
        for name, low, high in _RANGES:
            if not low <= getattr(self, name) <= high:
                limits = f"in {low:g}..{high:g}" if math.isfinite(high) else f"at least {low:g}"
                raise DataError(
                    f"{name}: must be {limits}, got {getattr(self, name):g}. Correct the recipe."
                )
        if not (self.logit_weight or self.feature_weight or self.label_weight):
            raise DataError(
                "logit_weight: one of logit_weight, feature_weight and label_weight must be above "
                "0, got 0 for all. Correct the recipe."
            )

    @property
    def peak(self) -> float:
        """The learning rate that is really used."""
        return LR[self.optimizer] if self.lr is None else self.lr

    def near(self, distance: float) -> FinetuneConfig:
        """The settings for a start at a distance from the original, which is in `lr` then.

        The default rate is that of a net which has far to go. From close by its first steps would
        lead away: it is reduced with the square root of the distance, which is how far the weights
        are to move.
        """
        if self.lr is not None:
            return self
        share = (distance / FAR) ** 0.5 if math.isfinite(distance) else 1.0
        return replace(self, lr=LR[self.optimizer] * min(max(share, LEAST_SHARE), 1.0))


_INF = math.inf
_RANGES = (
    ("momentum", 0, 0.9999), ("weight_decay", 0, _INF), ("warmup", 0, 1),
    ("max_grad_norm", 0, _INF),
    ("ema", 0, 0.999999), ("logit_weight", 0, _INF), ("temperature", 1e-3, 1e6),
    ("feature_weight", 0, _INF), ("label_weight", 0, _INF), ("label_smoothing", 0, 1),
    ("crop", 0, 10_000), ("mixup", 0, _INF), ("cutmix", 0, _INF), ("micro_batches", 1, _INF),
    ("patience", 0, _INF),
)  # fmt: skip


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read settings of `FinetuneConfig` by name from a ``.toml`` or ``.json`` file.

    Raises
    ------
    DataError
        It cannot be read, or a name or a type is wrong.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: a recipe must be a readable .toml or .json file, got {type(error).__name__}. "
            "Correct --recipe."
        ) from error
    try:
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: the recipe does not parse: {error}. Correct it.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: a recipe must hold names and values, got a list. Correct it.")
    return {name: _checked(path, name, value) for name, value in content.items()}


def with_recipe(recipe: dict[str, Any], **given: Any) -> FinetuneConfig:
    """A recipe's settings, with those that are given (not None) in their place."""
    settings = {"epochs": 0, **recipe}
    settings |= {name: value for name, value in given.items() if value is not None}
    return replace(FinetuneConfig(0), **{"lr": None, **settings})


def _checked(path: Path, name: str, value: Any) -> Any:
    kinds = {f.name: str(f.type) for f in fields(FinetuneConfig) if f.name not in _OF_A_RUN}
    if name not in kinds:
        near = difflib.get_close_matches(name, kinds, 1)
        hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(kinds)}."
        raise DataError(f"{path}: {name!r} is no setting of a recipe. {hint}")
    wanted = kinds[name].split(" | ")[0]
    if wanted == "float" and type(value) is int:
        value = float(value)
    if type(value).__name__ != wanted or (wanted == "float" and not math.isfinite(value)):
        raise DataError(f"{path}: {name} must be a {wanted}, got {value!r}. Correct the recipe.")
    return value
