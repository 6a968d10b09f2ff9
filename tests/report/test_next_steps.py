"""What the page says to do next, and how to load what there is."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from reports import layer, page, point, report, speed
from suggestions import check_accepted, suggested
from torch import nn

from factorize.cli import command as cli
from factorize.cli import given_plan, kit
from factorize.measure import Recorded, runtimes
from factorize.measure.kit.times_file import Times
from factorize.report import CUT_SHORT, Report, write_html
from factorize.report.loading import snippets
from factorize.report.next_step import FLAGS, OF_KIT
from factorize.report.next_steps import next_steps
from factorize.run.compress import compress
from factorize.types import Plan

COMMAND = "factorize net.pt --rank=8 --data imagenet/ --lossless --out 'my nets/' --force"
REAL = {"data": "real images", "fit": {"images": 500}, "int8_possible": True}


def titles(one: Report) -> list[str]:
    return [step.title for step in next_steps(one)]


def slow(ratio: float = 0.9, **other: Any) -> Report:
    return report(curve=(), search=None, settings=REAL, **other,
                  speed=(speed(ratio, ratio - 0.04, ratio + 0.04),))  # fmt: skip


@pytest.mark.parametrize(
    ("one", "wanted"),
    [
        (report(settings={"data": "made up"}), "Give it real images"),
        (report(settings={}, quality_of="outputs on random input"), "Give it real images"),
        (slow(), "Ask for measured speed"),
        (report(curve=(), settings=REAL), "Choose among several speedups"),
        (report(settings=REAL), "Fine-tune it"),
        (report(settings=REAL, finetuning={"best_epoch": 2.0, "epochs_done": 2.0}),
         "Fine-tune it for longer"),
        (report(settings=REAL, layers=(layer("a", error=0.02),)), "Fit to more images"),
        (report(settings=REAL), "Compute in integers"),
        (report(settings=REAL | {"other_targets": ["openvino"]}),
         "Choose for the runtime that will run it"),
        (report(layers=(layer("a", speedup_low=0.7, speedup_high=0.8),)),
         "Leave alone the layers that became slower"),
        (report(layers=(*report().layers, layer("x[0]", held_out_error=0.5))),
         "Leave alone the layers that cost most"),
        (replace(slow(), speed=(speed(0.4, 0.1, 3.0),)), "Measure again"),
    ],
)  # fmt: skip
def test_what_was_lacking_is_the_next_step(one: Report, wanted: str) -> None:
    assert wanted in titles(one)


def test_what_was_there_is_no_next_step() -> None:
    tuned = {"best_epoch": 1.0, "epochs_done": 2.0}
    full = report(settings=REAL, finetuning=tuned, int8={"check": {}})
    assert titles(full) == []
    timed_by_nothing = report(search=None, settings=REAL | {"other_targets": ["openvino"]})
    assert "Choose for the runtime that will run it" not in titles(timed_by_nothing)
    assert "Fine-tune it" not in titles(report(settings={"data": "made up"}))


def test_what_lost_nothing_is_not_tuned() -> None:
    """Nor for longer where the last epoch changed nothing that is shown."""
    quality = dict(report().quality)
    same = {**quality, "finetuned": quality["original"]}
    assert "Fine-tune it" not in titles(report(settings=REAL, quality=same))
    tuned = {"best_epoch": 1.0, "epochs_done": 1.0}
    still = {**quality, "finetuned": quality["rewritten"]}
    for one in (same, still):
        assert not any("tune" in t for t in titles(report(settings=REAL, quality=one,
                                                          finetuning=tuned)))  # fmt: skip


def test_what_was_interrupted_goes_on(tmp_path: Path) -> None:
    """And in its own folder: nothing else is said to do."""
    tuning = report(settings={**REAL, "finetune": {"epochs": 40}}, finetuning={"interrupted": True})
    exporting = report(settings=REAL, notes=(CUT_SHORT,), speed=(), search=None)
    for one, option in ((tuning, "--resume"), (exporting, "--force")):
        [step] = next_steps(one)
        assert step.command("factorize net.pt --rank 8 --force --out r", "r") == (
            f"factorize net.pt --rank 8 --out r {option}"
        )
        assert "The run was interrupted." in page(one, tmp_path, COMMAND)[0]


def test_every_command_is_one_that_the_command_line_takes(tmp_path: Path) -> None:
    """With what it replaces left out, and files in a folder of their own that is not there."""
    parser = typer.main.get_command(cli.app)
    shown = 0
    out = tmp_path / "my nets"
    (tmp_path / "my nets-sweep").mkdir()
    for one in (slow(), report(curve=(), settings=REAL), report(settings={"data": "made up"}),
                report(layers=(*report().layers, layer("x[0]", held_out_error=0.5)))):  # fmt: skip
        text, _ = page(one, tmp_path, COMMAND)
        folders = []
        for step in next_steps(one):
            words = shlex.split(step.command(COMMAND, out))
            params = parser.make_context("factorize", words[1:]).params
            assert params["model"] == "net.pt"
            folders.append(str(params["out"]))
            assert not params["force"]
            assert step.title in text
            shown += 1
            if step.title == "Ask for measured speed":
                assert (params["rank"], params["lossless"], params["speedup"]) == (None, False, 1.5)
            if "cost most" in step.title:
                assert params["exclude"] == ["x[[]0]"]
            if params["sweep"]:
                assert folders[-1] == f"{out}-sweep-2"
        assert len(set(folders)) == len(folders)
        assert not any(Path(one).exists() for one in folders)
    assert shown > 6


def test_options_are_known_as_the_command_line_has_them() -> None:
    of_run, of_kit = (typer.main.get_command(app).params for app in (cli.app, kit.app))
    long = {max(one.opts, key=len) for one in of_run}
    alone = {opt for one in of_run if getattr(one, "is_flag", False) for opt in one.opts}
    asking = {"--help", "--help-all", "--version", "--install-completion", "--show-completion"}
    assert FLAGS - {"--int8"} == alone - asking
    assert long & {max(one.opts, key=len) for one in of_kit} - {"model", "--out"} == OF_KIT


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("--speedup 2 --times t.json --lr=1 -v", {"speed": True}),
        ("--rank 8", {}),
        ("--macs 0.5 --stages 2 --calibration-images 9 --force", {"speed": True}),
        ("--plan plan.json", {"layers": (layer("a", speedup_high=0.8),)}),
        ("--speedup 2 --onnx-float16 --save-calibration c.safetensors", {}),
        ("--max-drop 1 --sensitivity kl --exclude a --finetune 3", {}),
    ],
)
def test_the_command_line_carries_out_what_is_suggested(
    given: str, made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the run was given: what excludes it is not suggested, or left out."""
    monkeypatch.chdir(tmp_path)
    times = Times("t.json", {"device": "Board", "runtime": "ort", "threads": 2}, "n", "digits", 1,
                  1.0, None, {}, {})  # fmt: skip
    recorded = Recorded(threads=2, batch=1, times=times)
    for place in ("factorize.cli.targets.load_times", "factorize.cli.kit.load_times"):
        monkeypatch.setattr(place, lambda *_: recorded)
    monkeypatch.setattr(given_plan, "load_plan", lambda _: Plan((), {}))
    far = "--times" in given
    if made.pop("speed", False):
        made["speed"] = (speed(runs=0, taken_from="t.json") if far else speed(0.9, 0.8, 0.95),)
        made["search"] = replace(report().search, measured=made["speed"][0])
    if "--macs" in given:
        made["search"] = replace(made["search"], budget={"macs": 0.5})
    one = report(
        curve=(), settings=REAL | {"int8_possible": not far, "other_targets": ["torch-cpu"]}, **made
    )
    write_html(one, "r.html", f"factorize digits {given}", "d")
    commands = suggested(Path("r.html"))
    titles_ = titles(one)
    assert commands
    assert ("Let the device time the best nets" in titles_) == far
    assert not (far and "Compute in integers" in titles_)
    check_accepted(monkeypatch, commands)


def test_keywords_of_a_step_are_those_of_compress(tmp_path: Path) -> None:
    from inspect import signature

    import factorize

    known = signature(factorize.compress).parameters
    for one in (slow(), report(curve=(), settings=REAL), report(settings={"data": "made up"})):
        for step in next_steps(one):
            found = eval(f"dict({step.python})", {"factorize": factorize})
            assert found.keys() <= known.keys()
            assert step.call.startswith("factorize.compress(")
        assert "factorize.compress(model" in page(one, tmp_path)[0]


@pytest.mark.filterwarnings("ignore")
def test_each_snippet_runs_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)).eval()

    result = compress(build(), torch.randn(1, 3, 12, 12), rank=4, out=tmp_path, latency=False)
    settings = result.report.settings
    assert settings["int8_possible"] is True  # ONNX Runtime's is the target
    here = {name for name in runtimes.names() if runtimes.get(name).missing() is None}
    assert set(settings["other_targets"]) <= here - {"onnxruntime"}
    assert ("openvino" in settings["other_targets"]) == ("openvino" in here)
    found = snippets(result.report)
    assert [one.file for one in found] == [
        "model.onnx", "model.pt2", "model.safetensors and plan.json",
    ]  # fmt: skip
    text = page(result.report, tmp_path)[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "my_net", type("my_net", (), {"build": build}))
    for one in found:
        names: dict[str, Any] = {}
        exec(one.code, names)
        output = names["outputs"][0] if "outputs" in names else names["output"]
        assert tuple(output.shape) == (1, 16, 8, 8)
        assert one.file in text


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("net.py:build", "from net import build  #"),
        ("models/my_net.py:small", "from my_net import small as build  #"),
        ("package.nets:Net", "from package.nets import Net as build  #"),
        ("Net", "from my_net import build  #"),
        ("a b.py:os;x", "from my_net import build  #"),
    ],
)
def test_a_snippet_builds_the_original_as_the_run_did(model: str, line: str) -> None:
    sizes = {name: {"original": 1, "compressed": 1} for name in ("safetensors", "pt2")}
    [code] = [one.code for one in snippets(report(model=model, bytes=sizes)) if "build" in one.code]
    assert line in code
    compile(code, "snippet", "exec")


def test_what_is_not_there_has_no_snippet() -> None:
    sizes = {"original": 1, "compressed": 1}
    assert snippets(report(bytes={})) == ()
    of_onnx = report(bytes={"onnx": sizes, "safetensors": sizes})
    assert [one.file for one in snippets(of_onnx)] == ["model.onnx"]
    failed = replace(of_onnx, failures=("model.pt2: why",))
    assert len(snippets(failed)) == 2


def test_the_chart_has_int8_alone_and_the_result_without_a_search(tmp_path: Path) -> None:
    quality = report().quality | {"int8 alone": {"top1": 91.6}, "int8": {"top1": 90.8}}
    speeds = (speed(4.1, 3.9, 4.3), replace(speed(2.7, 2.6, 2.8), net="int8 alone"))
    one = report(curve=(), search=None, quality=quality, speed=speeds)
    text, parsed = page(one, tmp_path)
    assert parsed.counts["svg"] == 4
    assert all(f">{name}</text>" in text for name in ("original", "int8 alone", "result"))
    assert one.quality_now == {"top1": 90.8}
    failed = {name: values for name, values in quality.items() if name != "int8"}
    assert replace(one, quality=failed).quality_now == report().quality["finetuned"]
    assert point("a", "dense", 1, 2).label == "a"
