"""Exporters tell of what they do, on the console and in logs; nobody here asked."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO

_CHATTY = ("onnx_ir", "onnxscript", "torch.onnx", "torch.export")  # their loggers


@contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """Keep the exporters' progress and deprecation notices off the console.

    Some libraries set the root logger to INFO, where exporters tell of every node; whoever sets an
    exporter's own logger wants that.

    Parameters
    ----------
    level
        Of what they tell nevertheless.
    """
    loggers = [logging.getLogger(name) for name in _CHATTY]
    loggers = [logger for logger in loggers if logger.level == logging.NOTSET]
    for logger in loggers:
        logger.setLevel(level)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger in loggers:
            logger.setLevel(logging.NOTSET)
