"""Commands in forks of one process that has imported and exported already: that takes seconds."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hurrying import hurry

from factorize.export.alone import RUNS

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["warmed", "refusing", "interrupting"])


def started(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A fork that calls a function of a module."""
    process = _CONTEXT.Process(target=function, args=arguments)
    # The first start is that of the process forked from, which finds modules by this alone.
    ours = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    with patch.dict(os.environ, ours):
        process.start()
    return process


def hurry_here() -> None:
    """In a fork: besides, exported files run here, as it has no time to start processes."""
    hurry()
    import_module("factorize.export.comparison").run_alone = _run_here


def _run_here(runtime: str, folder: Path, file: Path, calls: int) -> int:
    alone: dict[str, Any] = {}
    exec(RUNS[runtime][0] + RUNS[runtime][1], alone)
    file = file.absolute()
    with contextlib.chdir(folder):
        alone["run"](str(file), calls)
    return 0
