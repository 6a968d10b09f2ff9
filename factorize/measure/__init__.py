"""What a model costs and what it is worth: MACs, parameters, accuracy and time."""

from factorize.measure.cost import count
from factorize.measure.environment import environment
from factorize.measure.latency import onnx_speedup, torch_speedup
from factorize.measure.quality import accuracy, agreement_on_random_input
from factorize.measure.speedups import speedups
from factorize.measure.worth import as_metric, measured_on, metric_values, worth

__all__ = [
    "accuracy",
    "agreement_on_random_input",
    "as_metric",
    "count",
    "environment",
    "measured_on",
    "metric_values",
    "onnx_speedup",
    "speedups",
    "torch_speedup",
    "worth",
]
