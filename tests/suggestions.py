"""The commands that a report's page suggests, as the command line takes them."""

from __future__ import annotations

import shlex
import sys
from html import unescape
from pathlib import Path
from re import DOTALL, findall, search, sub

import pytest
import typer

from factorize.cli import command as cli
from factorize.cli import kit
from factorize.cli.ending import ended
from factorize.report import Console
from factorize.run import compress


class Accepted(Exception):  # noqa: N818, it is what is hoped for
    """All that is looked at before the work was in order."""


def suggested(page: Path) -> list[list[str]]:
    """The words of each command under "What to do next"."""
    section = search('<section id="next">(.*?)</section>', page.read_text(), DOTALL)
    shown = findall('<pre class="shell"><code>(.*?)</code></pre>', section[1], DOTALL)
    return [shlex.split(unescape(sub("<[^>]+>", "", one))) for one in shown]


def check_accepted(monkeypatch: pytest.MonkeyPatch, commands: list[list[str]]) -> None:
    """Carry out commands up to where their work begins, in the current folder.

    Options that exclude each other, a folder that is taken, times of another device: each is
    refused before that.
    """

    def accept(*_: object, **__: object) -> None:
        raise Accepted

    folders = [one[one.index("--out") + 1] for one in commands]
    assert len(set(folders)) == len(folders)
    assert not any(Path(one).exists() for one in folders)
    with monkeypatch.context() as here:
        here.setattr(compress, "first_look", accept)
        here.setattr(kit, "write_kit", accept)
        for program, *words in commands:
            assert program == "factorize"
            here.setattr(sys, "argv", [program, *words])
            of_kit = words[0] == "kit"
            app = typer.main.get_command(kit.app if of_kit else cli.app)
            with pytest.raises(Accepted):
                pytest.fail(f"{words}: exit {ended(app, words[of_kit:], Console())}")
