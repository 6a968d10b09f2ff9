"""How large integer weights may be, so that sums of two products do not saturate."""

from __future__ import annotations

import platform
from pathlib import Path

LARGEST = 127
_HALVED = 63
FLAGS = Path("/proc/cpuinfo")


def largest_code() -> int:
    """Of int8 weights on this processor: 127, or 63 on an x86 one without VNNI.

    There two products of an unsigned and a signed byte are added in 16 bits, which saturate where
    the weights use all of theirs (``reduce_range`` in ONNX Runtime's own quantizer).
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i686"):
        return LARGEST
    try:
        flags = FLAGS.read_text("utf-8").lower()
    except OSError:  # no Linux: the smaller one is right everywhere
        return _HALVED
    return LARGEST if "avx512_vnni" in flags or "avx_vnni" in flags else _HALVED
