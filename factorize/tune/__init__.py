"""What data makes up for: batch-norm recalibration and fine-tuning by distillation."""

from factorize.tune.checkpoint import missing_checkpoint
from factorize.tune.distance import placed, to_model
from factorize.tune.finetune import FinetuneConfig, FinetuneResult, finetune
from factorize.tune.order import ordered
from factorize.tune.recalibrate import Recalibration, recalibrate

__all__ = [
    "FinetuneConfig",
    "FinetuneResult",
    "Recalibration",
    "finetune",
    "missing_checkpoint",
    "ordered",
    "placed",
    "recalibrate",
    "to_model",
]
