"""Code on the pages runs, each page by itself and from top to bottom, as a reader would run it.

A block with a title is a file that is written. What cannot run says so above it, with the reason;
of such a command the options are read all the same.
"""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import hurrying
import pytest
import reference_pages  # of docs/
import typer
from conftest import Ran
from draw_speedup import points

import factorize
from factorize import export
from factorize.calibrate import calibration_file
from factorize.cli.command import app, compare_app
from factorize.measure import LatencyModel, cache, interleave
from factorize.plan import plan_file
from factorize.report import record
from factorize.tune import checkpoint

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = 22
"""So many blocks say that they are not run; one more is not to come by accident."""

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


class Block(NamedTuple):
    """Code between fences."""

    language: str
    title: str
    text: str
    reason: str


def blocks(page: Path) -> list[Block]:
    """Of one page, in order."""
    fence = re.compile(
        r"(?:<!-- not run: (.+?) -->\n)?^```(\w+)(?: title=\"(.+?)\")?\n(.*?)^```$", re.M | re.S
    )
    return [
        Block(lang, title, text, why) for why, lang, title, text in fence.findall(page.read_text())
    ]


def commands(block: Block) -> Iterator[list[str]]:
    """What stands behind the prompts."""
    for line in re.findall(r"^\$ (.+)$", block.text, re.M):
        for part in line.split("&&"):
            yield shlex.split(part, comments=True)


def arguments(words: list[str]) -> list[str] | None:
    """Those that ``factorize`` is given, however it is called."""
    for start in (["factorize"], ["python", "-m", "factorize"]):
        if words[: len(start)] == start:
            return words[len(start) :]
    return words[words.index("factorize") + 1 :] if words[:1] == ["torchrun"] else None


LESS = {"--calibration-images": "64", "--finetune": "0", "--method": "spatial_svd"}
"""What a command is given besides, where it says nothing else: a reader has more time."""

FILES = ("model.onnx", ".pt2", "factorize.load(", "--int8")
"""A page that has none of these in its code makes no use of what is exported."""


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A folder of their own, no verdict by the clock, no module of an earlier page."""
    monkeypatch.setattr("factorize.run.deliver._measure", lambda *_: None)
    monkeypatch.setattr(LatencyModel, "in_integers", lambda *_: None)
    monkeypatch.setattr("factorize.run.kept_in_float.speedup", lambda *_: hurrying.shown(2.0))
    monkeypatch.setattr(interleave, "_SECONDS", 0.0)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    yield
    for name in {*sys.modules} - known:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == tmp_path:
            del sys.modules[name]
    factorize.methods.base._registry.pop("copying", None)


@pytest.mark.usefixtures("small_runs", "one_thread")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_code_runs(
    page: Path, command: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    names: dict = {"__name__": page.stem}
    found = blocks(page)
    if not any(word in block.text for block in found for word in FILES):
        monkeypatch.setattr(export, "export_all", lambda *_: None)
    for block in found:
        if block.title:
            Path(block.title).write_text(block.text)
        elif block.reason:
            continue
        elif block.language == "python":
            exec(compile(block.text, str(page), "exec"), names)
        elif block.language == "console":
            for words in commands(block):
                if words[0] == "python" and words[1].endswith(".py"):
                    runpy.run_path(words[1], run_name="__main__")
                    continue
                given = arguments(words)
                assert given is not None, words
                less = [word for one in LESS.items() if one[0] not in given for word in one]
                ran = command(*given, *(less if "--plan" not in given else ()))
                assert ran.code == 0, ran.err + ran.out


def test_commands_have_options_that_exist() -> None:
    run, compare = (typer.main.get_command(one) for one in (app, compare_app))
    seen = 0
    for page in PAGES:
        for block in blocks(page):
            for words in commands(block) if block.language == "console" else ():
                given = arguments(words)
                if given is None:
                    continue
                seen += 1
                if given[0] == "compare":
                    compare.make_context("factorize compare", given[1:])
                else:
                    run.make_context("factorize", given)
    assert seen > 30


def test_what_is_not_run_says_why_and_is_counted() -> None:
    found = [block for page in PAGES for block in blocks(page) if block.reason]
    assert len(found) == NOT_RUN
    fences = sum(len(re.findall(r"^```\w", page.read_text(), re.M)) for page in PAGES)
    assert fences == sum(len(blocks(page)) for page in PAGES)  # none is written in another way


def test_ci_runs_what_the_readme_says() -> None:
    """Its two commands, and that on an ONNX file, to the letter but for where files lie."""
    ci = (ROOT / ".ci" / "run").read_text()
    said = [words for b in blocks(ROOT / "README.md")[:3] for words in commands(b)]
    assert len(said) == 6
    for words in said:
        told = [word for word in words if not word.startswith("scripts/")]
        assert re.search(r"[^\n]*?".join(map(re.escape, told)), ci), words


def test_the_readme_is_short_and_its_figures_are_measured() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) < 120
    rows = re.findall(r"^\| (.+?) \| (\d\.\d\d) \| (\d\d\.\d\d) dB \|$", readme, re.M)
    denoiser = points()["DnCNN, Set12: PSNR in dB"]
    measured = {(f"{p.speedup:.2f}", f"{p.score:.2f}") for p in denoiser}
    assert len(rows) == 8
    assert {(speedup, score) for _, speedup, score in rows} <= measured


def test_reference_has_each_public_name_once() -> None:
    text = (ROOT / "docs" / "reference.md").read_text()
    assert sorted(re.findall(r"^::: factorize\.(\w+)$", text, re.M)) == factorize.__all__
    assert ":::" in reference_pages.resolved(text)
    assert "::: factorize.compress\n" not in reference_pages.resolved(text)


def test_links_between_files_lead_somewhere() -> None:
    """Those to pages that MkDocs writes itself are MkDocs's to check."""
    made = {"command-line.md"}
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            if link not in made:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_formats_have_the_versions_of_the_code() -> None:
    text = (ROOT / "docs" / "files.md").read_text()
    for module in (plan_file, record):
        assert f'`"format": "{module.FORMAT}"` | {module.VERSION} |' in text
    assert f"`format: {calibration_file.FORMAT}`" in text
    assert f"safetensors | {calibration_file.VERSION} |" in text
    assert f"`version` | {checkpoint.VERSION} |" in text
    assert f"file's name | {cache._VERSION} |" in text
