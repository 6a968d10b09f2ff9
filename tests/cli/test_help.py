"""The two helps, the exit codes, and completion by the shell."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from conftest import Ran

from factorize.cli import command as cli
from factorize.cli import help as texts
from factorize.cli.exit_codes import MEANINGS, Ending

SOURCES = sorted(Path(cli.__file__).parent.glob("*.py"))
PARAMS = typer.main.get_command(cli.app).params


def test_the_short_help_fits_a_screen(
    command: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = command("--help")
    lines = ran.out.splitlines()
    assert ran.code == 0
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 80
    assert all(name in ran.out for name in texts.MAIN)
    panels = {one.rich_help_panel for one in PARAMS if getattr(one, "rich_help_panel", None)}
    flat = " ".join(ran.out.split())
    assert len(panels) == 8
    assert all(panel in flat for panel in panels)


def test_without_arguments_the_help_is_shown_and_nothing_was_done(
    command: Callable[..., Ran],
) -> None:
    ran = command()
    assert (ran.code, ran.err) == (Ending.REFUSED, "")
    assert "Usage: factorize MODEL" in ran.out


def test_the_long_help_has_every_option_and_exit_code(
    command: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ran = command("--help-all")
    assert ran.code == 0
    for one in PARAMS:
        if one.param_type_name == "option":
            assert max(one.opts, key=len) in ran.out
    for code, meaning in MEANINGS.items():
        assert f"{code.value}: {meaning[:40]}" in ran.out


def test_every_ending_is_declared_and_used() -> None:
    assert set(MEANINGS) == set(Ending)
    used = set[str]()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            declared = path.name == "exit_codes.py"
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "Ending":
                used |= set() if declared else {node.attr}
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("typer.Exit", "sys.exit"):
                assert not any(isinstance(one, ast.Constant) for one in node.args), path
    assert used == {one.name for one in Ending}


def test_the_docs_have_every_exit_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "files.md").read_text(encoding="utf-8")
    table = page[page.index("## Exit codes") :]
    assert {int(row) for row in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == set(Ending)


def test_the_shell_completes_options() -> None:
    env = os.environ | {
        "_FACTORIZE_COMPLETE": "complete_bash", "COMP_WORDS": "factorize --spee", "COMP_CWORD": "1",
        "PYTHONPATH": str(Path(cli.__file__).parents[2]),
    }  # fmt: skip
    code = "import sys; sys.argv[:] = ['factorize']; from factorize.cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=100
    )
    assert ran.stdout.split() == ["--speedup"], ran.stderr
