"""What data makes up for: batch-norm recalibration and fine-tuning by distillation."""

from .finetune import FinetuneConfig, FinetuneResult, finetune
from .recalibrate import Recalibration, recalibrate

__all__ = ["FinetuneConfig", "FinetuneResult", "Recalibration", "finetune", "recalibrate"]
