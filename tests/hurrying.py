"""Where neither times nor images nor tuned blocks are what is tested, runs take little of them."""

import sys
from collections.abc import Sequence

import numpy as np

from factorize.data import synthetic
from factorize.measure import interleave, pairs
from factorize.types import Latency, Speedup

_reconstruct = sys.modules["factorize.fit.reconstruct"]  # the package has a function of this name
_HURRIED = {
    pairs: {"_SECONDS": 0.0, "_WARMUP": 0.0, "_PATIENCE": 0.0},
    synthetic: {"COUNT": 60, "_LEAST_COUNT": 60, "_DRAWINGS": 2},
    _reconstruct: {"STEPS": 20},
}
IN_USE = [(module, name, getattr(module, name)) for module in _HURRIED for name in _HURRIED[module]]


def hurry() -> None:
    """For the rest of this process."""
    for module, values in _HURRIED.items():
        for name, value in values.items():
            setattr(module, name, value)


def distort(factor: float) -> None:
    """For the rest of this process: chains and compressed nets take so many times as long."""
    time_pairs, time_chain = pairs._interleave, interleave._chain_time

    def of_nets(*how: object) -> np.ndarray:
        return time_pairs(*how) * (1.0, factor)  # type: ignore[arg-type]

    def of_chain(columns: Sequence[Sequence[float]]) -> interleave.ChainTime:
        unit, dense, chain = columns
        return time_chain([unit, dense, [factor * one for one in chain]])

    pairs._interleave, interleave._chain_time = of_nets, of_chain


def shown(speedup: float) -> Speedup:
    """What the clock shows of a net that is as many times as fast, without any spread."""
    time = Latency(1, 1, 1)
    return Speedup("onnxruntime", "cpu", "int8", 1, 1, 20, time, time, speedup, speedup, speedup)
