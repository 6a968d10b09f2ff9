"""Where and how a model will run: what time is measured on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from factorize.errors import DeviceError
from factorize.measure.environment import cpu_name, package_version, usable_cores

RUNTIMES = ("onnxruntime", "torch-cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Target:
    """A runtime and how it is used.

    Attributes
    ----------
    runtime
        ``onnxruntime`` (its CPU provider), ``torch-cpu``, or ``cuda`` (torch, channels_last).
    threads
        Of the CPU; None: all usable cores.
    batch
        Samples per call.
    dtype
        ``float32``; on CUDA also ``bfloat16`` or ``float16``.
    compiled
        On CUDA: ``torch.compile`` with CUDA graphs instead of eager mode.

    Raises
    ------
    DeviceError
        There is no such target, or it is not on this machine.
    """

    runtime: str = "onnxruntime"
    threads: int | None = None
    batch: int = 1
    dtype: str = "float32"
    compiled: bool = False

    def __post_init__(self) -> None:
        for option, value, known in (
            ("--target", self.runtime, RUNTIMES),
            ("--dtype", self.dtype, DTYPES),
        ):
            if value not in known:
                raise DeviceError(f"{option} must be one of {', '.join(known)}, got {value!r}.")
        for option, count in (("--threads", self.threads), ("--batch", self.batch)):
            if count is not None and (not isinstance(count, int) or count < 1):
                raise DeviceError(f"{option} must be an integer of at least 1, got {count!r}.")
        if self.runtime != "cuda" and (self.dtype != "float32" or self.compiled):
            raise DeviceError(
                f"--target {self.runtime}: --dtype and --compile are for --target cuda. Leave them "
                "out, or choose cuda."
            )
        if self.runtime == "cuda" and not torch.cuda.is_available():
            raise DeviceError("--target cuda needs a CUDA device that torch can use, found none.")
        if self.threads is None:
            object.__setattr__(self, "threads", usable_cores())

    def __str__(self) -> str:
        how = f", {self.threads} threads"
        if self.runtime == "cuda":
            how = f", {self.dtype}{', compiled' if self.compiled else ''}"
        return f"{self.runtime}{how}, batch {self.batch}"

    @property
    def device(self) -> str:
        """The torch device: ``cpu`` or ``cuda``."""
        return "cuda" if self.runtime == "cuda" else "cpu"

    def context(self) -> dict[str, Any]:
        """All that a time depends on besides the chain: hardware and versions. For JSON."""
        if self.runtime == "cuda":
            machine = {
                "device": torch.cuda.get_device_name(),
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
            }
        else:
            machine = {"device": cpu_name(), "cores": usable_cores()}
        package = "onnxruntime" if self.runtime == "onnxruntime" else "torch"
        return {**asdict(self), **machine, package: package_version(package)}
