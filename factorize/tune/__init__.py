"""What data makes up for: batch-norm recalibration and fine-tuning by distillation."""

from factorize.tune.checkpoint import missing_checkpoint
from factorize.tune.distance import IncomparableError, placed, tensors, uses_labels
from factorize.tune.finetune import FinetuneResult, finetune
from factorize.tune.order import ordered
from factorize.tune.recalibrate import Recalibration, recalibrate, renormalised_
from factorize.tune.recipe import FinetuneConfig, read_recipe, with_recipe
from factorize.tune.scalars import TRACKERS, check_scalars, check_tracker

__all__ = [
    "TRACKERS",
    "FinetuneConfig",
    "FinetuneResult",
    "IncomparableError",
    "Recalibration",
    "check_scalars",
    "check_tracker",
    "finetune",
    "missing_checkpoint",
    "ordered",
    "placed",
    "read_recipe",
    "recalibrate",
    "renormalised_",
    "tensors",
    "uses_labels",
    "with_recipe",
]
