"""What data makes up for: batch-norm recalibration and fine-tuning by distillation."""

from factorize.tune.finetune import FinetuneConfig, FinetuneResult, finetune
from factorize.tune.recalibrate import Recalibration, recalibrate

__all__ = ["FinetuneConfig", "FinetuneResult", "Recalibration", "finetune", "recalibrate"]
