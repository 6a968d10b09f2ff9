"""Where neither times nor made-up images are what is tested, runs take little of both."""

from factorize.data import synthetic
from factorize.measure import pairs
from factorize.types import Latency, Speedup

_HURRIED = {
    pairs: {"_SECONDS": 0.0, "_WARMUP": 0.0, "_PATIENCE": 0.0},
    synthetic: {"COUNT": 60, "_LEAST_COUNT": 60, "_DRAWINGS": 2},
}
IN_USE = [(module, name, getattr(module, name)) for module in _HURRIED for name in _HURRIED[module]]


def hurry() -> None:
    """For the rest of this process."""
    for module, values in _HURRIED.items():
        for name, value in values.items():
            setattr(module, name, value)


def shown(speedup: float) -> Speedup:
    """What the clock shows of a net that is as many times as fast, without any spread."""
    time = Latency(1, 1, 1)
    return Speedup("onnxruntime", "cpu", "int8", 1, 1, 20, time, time, speedup, speedup, speedup)
