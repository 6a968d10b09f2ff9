"""Where a measurement was made."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = ("factorize", "torchvision", "onnx", "onnxscript", "onnxruntime")


def environment() -> dict[str, object]:
    """Describe the machine and the software: versions, CPU, usable cores, GPU; ready for JSON."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,  # with its build, such as +cpu
        **{package: package_version(package) for package in _PACKAGES},
        "os": platform.platform(),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "cuda_device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def usable_cores() -> int:
    """Count the cores this process may run on, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def package_version(package: str) -> str | None:
    """The version of an installed package; None where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's name, as far as the machine tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
