"""One thing to try, as a command and as a call."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FLAGS = {
    "--lossless", "--allow-costlier", "--resume", "--force", "--dry-run", "--int8",
    "--reconstruct", "--refresh", "--compile", "--onnx-float16", "--openvino-xml",
    "--trust-pickle", "--verbose", "-v",
}  # fmt: skip
"""Options that stand alone."""

OF_KIT = {
    "--speedup", "--method", "--include", "--exclude", "--batch", "--times", "--arch",
    "--arch-args", "--plugin", "--weights", "--key", "--trust-pickle", "--input-shape", "--data",
    "--mean", "--std", "--scale", "--resize", "--crop", "--batch-size", "--device", "--seed",
}  # fmt: skip
"""Options of a run that ``factorize kit`` takes too."""

_SEVERAL = {"--exclude", "--include"}
_AGAIN = {"--force", "--resume"}


@dataclass(frozen=True)
class NextStep:
    """One thing to try.

    Attributes
    ----------
    options
        To add to the command, or to set in it.
    python
        The same as keywords.
    folder
        What its folder's name ends with; empty where it goes on in the run's own folder.
    without
        Options that these replace.
    unless
        Options that it cannot be combined with.
    kit
        Whether it is for ``factorize kit``.
    """

    title: str
    why: str
    options: tuple[tuple[str, str], ...]
    python: str
    folder: str = ""
    without: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    kit: bool = False

    def fits(self, command: str) -> bool:
        """Whether it can be combined with the command."""
        return not any(name in self.unless for name, _ in _options(shlex.split(command)))

    def command(self, command: str, out: str | Path | None = None) -> str:
        """The command line of a run with this step taken.

        Parameters
        ----------
        out
            Folder of the run. What is new goes to one beside it that is not there yet.
        """
        program, *given = shlex.split(command)
        dropped = {name for name, _ in self.options} - _SEVERAL | {*self.without, *_AGAIN}
        if self.folder:
            dropped |= {"--out", "--save-calibration"}  # a file that is there by now
        out = out or dict(_options(given)).get("--out") or "factorized"
        kept = [
            word
            for name, words in _parts(given)
            if name not in dropped and (not self.kit or not name or name in OF_KIT)
            for word in words
        ]
        added = [word for pair in self.options for word in pair if word]
        if self.folder:
            added += ["--out", _free(f"{str(out).rstrip('/')}-{self.folder}")]
        return shlex.join([program, *["kit"] * self.kit, *kept, *added])

    @property
    def call(self) -> str:
        """The same in Python."""
        function = "write_kit" if self.kit else "compress"
        return f"factorize.{function}(model, example_input, {self.python})"


def _free(folder: str) -> str:
    """The name, with a number where there is such a folder."""
    number, name = 1, folder
    while Path(name).exists():
        number += 1
        name = f"{folder}-{number}"
    return name


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options and their values."""
    for name, given in _parts(words):
        if name:
            yield name, given[0].partition("=")[2] or given[-1]


def _parts(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """An option's name, or nothing, and the words that belong together."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, joined, _ = word.partition("=")
        if not name.startswith("-"):
            yield "", [word]
        elif joined or name in FLAGS or not rest:
            yield name, [word]
        else:
            yield name, [word, rest.pop(0)]
