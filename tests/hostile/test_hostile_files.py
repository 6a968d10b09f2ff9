"""Plans, calibrations, reports and caches of other versions, or edited into nonsense."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from crafted import PROTO, STOP, call, name, text, zipped
from refusing import (
    MARKER,
    Arguments,
    Case,
    Corpus,
    check_refused,
    error_of,
    run,
    save_net,
    small_net,
)
from safetensors.torch import save_file

from factorize.plan.plan_file import plan_to_dict
from factorize.run.make_plan import make_plan

CORPUS = Corpus()
ESCAPES = "\x1b]0;owned\x07\x1b[2J"
SHAPE = ("--input-shape", "3,16,16")
DEEP, LONG = b"[" * 200_000, b"9" * 5000

Content = dict[str, Any]


def plan() -> Content:
    made = make_plan(small_net(), torch.zeros(1, 3, 16, 16), rank=4)
    return json.loads(json.dumps(plan_to_dict(made)))


def top(**changes: Any) -> Callable[[Content], Any]:
    return lambda content: content.update(changes)


def layer(**changes: Any) -> Callable[[Content], Any]:
    return lambda content: content["layers"][1].update(changes)


def conv(**changes: Any) -> Callable[[Content], Any]:
    return lambda content: content["layers"][1]["conv"].update(changes)


def repeated(content: Content) -> None:
    one = content["layers"][1]
    content["layers"] = [{**one, "name": f"{i}"} for i in range(20_000)]


for _what, _change, _says in [
    ("another version", top(version=99), "version must be 1, got 99"),
    ("a version in escape codes", top(version=ESCAPES), "version must be 1"),
    ("a version without end", top(version="9" * 10**6), "version must be 1"),
    ("another format", top(format="factorize-report"), 'must say "format"'),
    ("no layers", top(layers=None), '"layers" must be a list'),
    ("20000 layers", repeated, "in the model"),
    ("a layer twice", lambda plan: plan["layers"].extend(plan["layers"]), "named once"),
    ("a layer of another model", layer(name=ESCAPES), "must name convolutions of the model"),
    ("an unknown method", layer(method=ESCAPES), "method must be one of"),
    ("a rank of NaN", layer(rank=[float("nan")]), "rank must be an integer"),
    ("a rank of 10**30", layer(rank=[10**30]), "rank must be an integer"),
    ("a rank below 0", layer(rank=[-4]), "rank must be an integer"),
    ("a rank of text", layer(rank=["4"]), "rank must be an integer"),
    ("100000 ranks", layer(rank=[4] * 10**5), "takes 1 rank(s)"),
    ("a kernel of 10**9", conv(kernel=[10**9, 10**9]), "kernel is"),
    ("a stride of 0", conv(stride=[0, 0]), "does not describe a convolution"),
    ("no groups", conv(groups=0), "does not describe a convolution"),
    ("channels in text", conv(in_channels="8"), "does not describe a convolution"),
    ("an unknown entry", conv(surprise=1), "a convolution: 'surprise' is unknown"),
    ("an unknown entry of two lines", conv(**{"\n": 1}), r"'\n' is unknown"),
    ("lists without end", DEEP, "plan.json: the plan must be JSON"),
    ("a number without end", LONG, "plan.json: the plan must be JSON"),
    ("bytes that are no text", b"\xff\xfe\0", "plan.json: the plan must be JSON"),
    ("nothing", b"", "plan.json: the plan must be JSON"),
]:

    def _plan(folder: Path, change: Any = _change) -> Arguments:
        if not isinstance(change, bytes):
            content = plan()
            change(content)
            change = json.dumps(content).encode()
        (folder / "plan.json").write_bytes(change)
        return (save_net(folder), "--plan", "plan.json", *SHAPE)

    CORPUS.add(f"plan with {_what}", _plan, _says)


@CORPUS.case("plan.json: the plan must be a readable file")
def plan_that_is_a_link_to_itself(folder: Path) -> Arguments:
    (folder / "plan.json").symlink_to("plan.json")
    return (save_net(folder), "--plan", "plan.json", *SHAPE)


for _what, _metadata, _says in [
    ("another version", {"format": "factorize-calibration", "version": "9"}, "version must be 1"),
    ("another format", {"format": ESCAPES}, 'must say "format"'),
    ("no metadata", None, 'must say "format"'),
    (
        "lists without end",
        {"format": "factorize-calibration", "version": "1", "layers": DEEP.decode()},
        '"layers" in the metadata must describe each layer',
    ),
]:

    def _calibration(folder: Path, metadata: dict[str, str] | None = _metadata) -> Arguments:
        save_file({"a": torch.zeros(1)}, folder / "c.safetensors", metadata)
        return (save_net(folder), "--rank", "4", *SHAPE, "--calibration", "c.safetensors")

    CORPUS.add(f"calibration with {_what}", _calibration, "error: c.safetensors: ", _says)


@CORPUS.case("c.safetensors: the calibration must be a readable, whole safetensors file")
def calibration_that_is_a_pickle(folder: Path) -> Arguments:
    program = PROTO + call(name("os", "system"), text(f"touch ../{MARKER}")) + STOP
    zipped(program, folder / "c.safetensors")
    return (save_net(folder), "--rank", "4", *SHAPE, "--calibration", "c.safetensors")


for _what, _content, _says in [
    ("another version", b'{"format": "factorize-report", "version": 99}', "must be 1, got 99"),
    ("escape codes", b'{"format": "factorize-report", "version": "\\u001b[2J"}', "must be 1"),
    ("another format", b'{"format": "factorize-plan"}', 'must say "format"'),
    ("entries missing", b'{"format": "factorize-report", "version": 1}', "is missing"),
    ("lists without end", DEEP, "the report must be JSON"),
    ("a number without end", LONG, "the report must be JSON"),
    ("bytes that are no text", b"\xff\xfe\0", "the report must be JSON"),
]:

    def _report(folder: Path, content: bytes = _content) -> Arguments:
        (folder / "report.json").write_bytes(content)
        return ("compare", "report.json")

    CORPUS.add(f"report with {_what}", _report, "error: report.json: ", _says)


@CORPUS.case("run/report.json: the report must be a readable file")
def folder_without_report(folder: Path) -> Arguments:
    (folder / "run").mkdir()
    return ("compare", "run")


@CORPUS.parametrize()
def test_refused(case: Case, tmp_path: Path) -> None:
    check_refused(case, tmp_path)


def test_a_damaged_cache_is_a_note(tmp_path: Path) -> None:
    """Timings are a convenience: the run goes on without, and leaves the file alone."""
    for folder in ("work", "scratch", "cache"):
        (tmp_path / folder).mkdir()
    cache = tmp_path / "cache" / "latency-1.sqlite"
    cache.write_text("no database")
    arguments = save_net(tmp_path / "work"), "--rank", "4", *SHAPE
    ran = run(arguments, tmp_path, hurried=True, memory=8 << 30)
    assert (ran.code, error_of(ran)) == (0, "")
    assert "the cache of timings was ignored" in " ".join(ran.out.split())
    assert cache.read_text() == "no database"
