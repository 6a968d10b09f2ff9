"""A command as a file: every option comes back from it, and what is wrong in it is one line."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import Ran

from factorize.cli import command as cli
from factorize.cli.bare import LEFT_OUT
from factorize.cli.run_file import NOT_IN_IT, as_run_file, as_words, entries_of
from factorize.errors import DataError

COMMAND = typer.main.get_command(cli.app)
ENTRIES = entries_of(COMMAND)
CANDIDATES = ("3", "0.5", "x,y", "a b")


def context_of(*arguments: str) -> Any:
    return COMMAND.make_context("factorize", list(arguments))


def arguments_of(name: str) -> list[str]:
    """A use of an option, with the first value that it takes."""
    option = ENTRIES[name]
    if name == "model":
        return ['ü "net".pt']
    if option.is_flag or f"--{name}" in LEFT_OUT:
        return ["net.pt", f"--{name}"]
    if option.multiple:
        return ["net.pt", f"--{name}", "a*[1]", f"--{name}", 'b"\\']
    for value in CANDIDATES:
        try:
            context_of("net.pt", f"--{name}", value)
        except Exception:
            continue
        return ["net.pt", f"--{name}", value]
    raise AssertionError(f"no candidate is a value of --{name}")


@pytest.mark.parametrize("name", ENTRIES)
def test_every_option_comes_back_from_the_file(name: str, tmp_path: Path) -> None:
    said = context_of(*arguments_of(name))
    assert said.params[ENTRIES[name].name] not in (None, False, [])
    file = tmp_path / "run.toml"
    file.write_text(as_run_file(said), encoding="utf-8")
    again = context_of("--config", str(file))
    hidden = {"config"} | ({"resume"} if name == "resume" else set())  # a resumed run is repeated
    for key in said.params.keys() - hidden:
        assert again.params[key] == said.params[key], key
    line = as_words(said)[1:]
    assert context_of(*line).params == said.params
    if name != "resume":
        assert as_run_file(again) == as_run_file(said)


def test_what_is_in_no_file_asks_for_no_run() -> None:
    assert set(NOT_IN_IT) <= {one.name for one in COMMAND.params}
    assert len(ENTRIES) > 50


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'model = "net.pt"\nmax_drop = 1\nrank = 8\ninclude = ["a", "b"]\nforce = true\n'
    )
    params = context_of("--config", str(file), "--rank", "4", "--include", "c").params
    assert (params["model"], params["max_drop"], params["rank"]) == ("net.pt", 1.0, "4")
    assert (list(params["include"]), params["force"]) == (["c"], True)
    file.write_text('model = "net.pt"\nint8 = true\n')
    assert context_of("--config", str(file)).params["int8"] == "auto"
    assert context_of("other.pt", "--config", str(file)).params["model"] == "other.pt"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spedup = 2", "'spedup' is no option. Did you mean speedup?"),
        ("zzz = 2", "'zzz' is no option. See --help-all"),
        ("config = 'a'", "'config' is no option"),
        ("[target]\nname = 'x'", "target must be text or a number, got {'name': 'x'}"),
        ("force = 'yes'", "force must be true or false, got 'yes'"),
        ("include = 'a'", "include must be a list of text"),
        ("include = [1]", "include must be a list of text"),
        ("int8 = 'some'", "int8 must be true or one of auto, all, got 'some'"),
        ("rank = true", "rank must be text or a number, got True"),
        ("finetune = 'two'", "finetune is wrong, got 'two'"),
        ("speedup = 'fast'", "speedup is wrong, got 'fast'"),
        ("half", "must be TOML"),
    ],
)
def test_what_is_wrong_in_it_is_one_line(
    command: Callable[..., Ran], tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "run.toml").write_text(text)
    ran = command("net.pt", "--config", "run.toml")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert ran.err.startswith("error: run.toml: ")
    assert message in ran.err


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.toml: must be a readable .toml file"):
        context_of("--config", str(tmp_path / "none.toml"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch|accelerate|onnxscript")
def test_a_run_writes_the_file_that_repeats_it(
    command: Callable[..., Ran], tmp_path: Path, unexported: None
) -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)), tmp_path / "net.pt")
    wish = ("net.pt", "--rank", 4, "--input-shape", "3,16,16", "--seed", 3, "--fit", "weights")
    assert command(*wish).code == 0
    made = tmp_path / "net-factorized"
    content = tomllib.loads((made / "run.toml").read_text())
    assert content == {"model": "net.pt", "rank": "4", "input-shape": "3,16,16", "seed": 3,
                       "fit": "weights"}  # fmt: skip
    ran = command("--config", made / "run.toml", "--out", "again")
    assert ran.code == 0, ran.err
    first, second = (json.loads((one / "report.json").read_text())
                     for one in (made, tmp_path / "again"))  # fmt: skip
    assert [one["error"] for one in first["layers"]] == [one["error"] for one in second["layers"]]
    assert first["settings"] == second["settings"]
    page = (tmp_path / "again" / "report.html").read_text()
    assert "<span>--input-shape</span> <span>3,16,16</span>" in page  # the whole command
