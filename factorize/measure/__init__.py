"""What a model costs and what it is worth: MACs, parameters, accuracy and time."""

from factorize.measure.cache import NumberCache, default_cache_path
from factorize.measure.cost import count
from factorize.measure.environment import environment
from factorize.measure.interleave import Chain, ChainTime, between, in_units
from factorize.measure.kit import (
    Group,
    KitWriter,
    Recorded,
    RecordedTimes,
    Wanted,
    load_times,
    net_id,
    shape_of_net,
)
from factorize.measure.latency_model import LatencyModel
from factorize.measure.onnx_net import OnnxNet
from factorize.measure.pairs import speedup, speedups
from factorize.measure.quality import accuracy, agreement_on_random_input
from factorize.measure.runtimes import Runtime, Target
from factorize.measure.splice import splice
from factorize.measure.worth import as_metric, measured_on, metric_values, own_names, worth

__all__ = [
    "Chain",
    "ChainTime",
    "Group",
    "KitWriter",
    "LatencyModel",
    "NumberCache",
    "OnnxNet",
    "Recorded",
    "RecordedTimes",
    "Runtime",
    "Target",
    "Wanted",
    "accuracy",
    "agreement_on_random_input",
    "as_metric",
    "between",
    "count",
    "default_cache_path",
    "environment",
    "in_units",
    "load_times",
    "measured_on",
    "metric_values",
    "net_id",
    "own_names",
    "shape_of_net",
    "speedup",
    "speedups",
    "splice",
    "worth",
]
