"""Command lines of any options and values, as the command itself declares them.

All is real up to the search and the fit, where a run is stopped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import typer
from conftest import Ran
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import nn

import factorize
from factorize import methods
from factorize.cli import command as cli
from factorize.errors import FactorizeError
from factorize.measure import runtimes
from factorize.plan import save_plan

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning:torch|accelerate|onnxscript")]

DECLARED = typer.main.get_command(cli.app).params
# Not those that would change the shell of whoever runs the tests.
OPTIONS = [one for one in DECLARED if one.param_type_name == "option"
           and not str(one.name).endswith("_completion")]  # fmt: skip
MODELS = [*12 * ["net.pt"], "digits", "text.pt", "missing.pt", "torchvision:none", "images", ""]
VALUES = [
    "", "0", "1", "2", "3", "16", "-1", "0.5", "1.0", "1.5", "1e-3", "nan", "inf", "-inf", "1e999",
    "9" * 30, "9" * 5000, "auto", "knee", "cpu", "x", ",", "1,2", "1.5,2", "3,16,16", "3,8,1000000",
    "*", "2", "[", "{}", "[1]", '{"n": 1}', "null", "\x1b[2J", "\n", "ü", "--rank", "net.pt",
    "text.pt", "plan.json", "images", "d.npz", "missing", "missing/x", "digits", "json:dumps",
    "json:nothing", "no.such:f", "text.pt:f", "net.pt,cp", "/", ".",
]  # fmt: skip


class StoppedError(FactorizeError):
    """The run came to its work."""


def stop(*_: Any, **__: Any) -> NoReturn:
    raise StoppedError("stopped")


def words(option: Any) -> list[str]:
    """The choices that an option's help names: ``a | b | c``."""
    return re.findall(r"[\w-]+(?= \|)|(?<=\| )[\w-]+", option.help or "")


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    random = Random(draw(st.integers(0, 2**64)))  # as in `convolutions.layers`
    line = [random.choice(MODELS)]
    if random.random() < 0.7:  # likelier to get far
        line += ["--input-shape", "3,16,16", "--rank", "2"]
    for option in random.choices(OPTIONS, k=random.choice([0, 1, 1, 2])):
        line.append(random.choice(option.opts))
        if not option.is_flag:
            line.append(random.choice([*VALUES, *5 * words(option)]))
    if random.random() < 0.1:
        line.insert(random.randint(0, len(line)), random.choice(VALUES))
    return line + ["--dry-run"] * random.randint(0, 1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3))
    torch.save(net, tmp_path / "net.pt")
    save_plan(factorize.make_plan(net, torch.zeros(1, 3, 16, 16), rank=2), tmp_path / "plan.json")
    (tmp_path / "text.pt").write_text("not a model")
    (tmp_path / "images").mkdir()
    images = np.zeros((20, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "d.npz", images=images, labels=np.arange(20) % 2)
    for heavy in ("run.pipeline.fit", "run.pipeline.run_search", "run.make_plan.run_search"):
        monkeypatch.setattr(f"factorize.{heavy}", stop)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # of all tests
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | None]:
    files = sorted(folder.rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in files}


@settings(
    max_examples=2 * settings().max_examples,
    suppress_health_check=[
        *settings().suppress_health_check, HealthCheck.function_scoped_fixture
    ],
)  # fmt: skip
@given(line=command_lines())
def test_any_command_line_ends_well_or_in_one_line(
    command: Callable[..., Ran], folder: Path, line: list[str]
) -> None:
    before = contents(folder)
    ran = command(*line)
    event("at work" if "error: stopped" in ran.err else f"exit code {ran.code}")
    assert ran.code in {0, 2, 3}
    if ran.code:
        assert ran.err.startswith("error: ")
        assert ran.err[:-1].isprintable()
        assert ran.err.endswith("\n")
        assert len(ran.err) < 1000
    else:
        assert not ran.err
        assert {"--dry-run", "--help", "--help-all", "--version"} & set(line)
    assert contents(folder) == before


def test_options_and_choices_are_those_of_the_command() -> None:
    by_name = {name: one for one in OPTIONS for name in one.opts}
    assert {"--rank", "--speedup", "--plan", "--dry-run"} <= by_name.keys()
    assert set(words(by_name["--method"])) >= set(methods.names())
    assert words(by_name["--target"]) == list(runtimes.names())
    assert words(by_name["--dtype"]) == list(runtimes.dtypes())


def test_a_run_is_stopped_at_its_work(command: Callable[..., Ran], folder: Path) -> None:
    for how in (["--rank", "2"], ["--speedup", "2"], ["--speedup", "2", "--dry-run"]):
        ran = command(folder / "net.pt", "--input-shape", "3,16,16", *how)
        assert (ran.code, ran.err) == (2, "error: stopped\n")
