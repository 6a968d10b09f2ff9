"""The command line: texts in, `run` called, texts out."""

from factorize.cli.command import main

__all__ = ["main"]
