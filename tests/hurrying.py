"""Where neither times nor made-up images are what is tested, runs take little of both."""

from factorize.data import synthetic
from factorize.measure import pairs

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
