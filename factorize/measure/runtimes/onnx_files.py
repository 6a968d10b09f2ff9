"""What the runtimes of ONNX files share."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from factorize.errors import ExportError
from factorize.measure.runtimes.base import Target
from factorize.spec import ConvSpec, Size
from factorize.tensor.call import onnx_feeds, onnx_session

NOTHING = ConvSpec("", "conv2d", 1, 1, (1, 1), (1, 1), (0, 0), (1, 1), bias=False)
CALLS = 200
"""That the overhead of a call is the median of."""

_LONG_RUN = 5e8  # MACs: some milliseconds
_MACS_PER_WEIGHT = 40  # that take as long as reading it from memory
_MOST_COPIES = 16
TOLERANCES = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1e-1, "int8": 1e-1}
"""Of a net's outputs, by what it computes in: norm of the difference over that of the outputs."""


def copies_in_a_run(target: Target, dense: ConvSpec, size: Size) -> int:
    """So many that a run is as long as that of a net's larger part.

    In a short run the threads of the runtime take most of the time to wake up.
    """
    macs = target.batch * dense.params * prod(dense.output_size(size))
    work = max(macs, _MACS_PER_WEIGHT * dense.params, 1)
    return int(min(max(_LONG_RUN / work, 1), _MOST_COPIES))


def made_up(shape: Size, dtype: str) -> np.ndarray:
    """A value to time a chain with."""
    draw = np.random.default_rng(0)
    if dtype == "uint8":
        return draw.integers(0, 256, shape, np.uint8)
    return draw.standard_normal(shape).astype(np.float32)


def difference(net: str | Path | bytes, inputs: Any, found: list[np.ndarray]) -> float:
    """How far outputs are from those of ONNX Runtime's CPU provider, relative to these."""
    session = onnx_session(net)
    wanted = session.run(None, onnx_feeds(session, inputs))
    apart = 0.0
    for ours, theirs in zip(found, wanted, strict=True):
        one, two = (np.asarray(value, np.float64) for value in (ours, theirs))
        if one.shape != two.shape:
            return float("inf")
        size = max(float(np.linalg.norm(two)), np.finfo(np.float32).tiny)
        apart = max(apart, float(np.nan_to_num(np.linalg.norm(one - two) / size, nan=np.inf)))
    return apart


def compared(
    target: Target, net: str | Path | bytes, inputs: Any, found: list[np.ndarray]
) -> list[str]:
    """What is told of a net's outputs on a target.

    Raises
    ------
    ExportError
        They are not those of ONNX Runtime's CPU provider.
    """
    apart, most = difference(net, inputs, found), TOLERANCES[target.dtype]
    name = "the net" if isinstance(net, bytes) else Path(net).name
    if not apart <= most:
        raise ExportError(
            f"{name}: its outputs on {target} must be those of ONNX Runtime's CPU provider within "
            f"{most:g}, got {apart:.3g}. Deploy it elsewhere, or in float32."
        )
    return [f"{name} on {target} puts out what ONNX Runtime's CPU provider does, to {apart:.1g}"]
