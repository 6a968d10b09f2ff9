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
from torch import nn

from factorize.cli import command as cli
from factorize.report import Report
from factorize.report.loading import snippets
from factorize.report.next_steps import next_steps
from factorize.run.compress import compress

COMMAND = "factorize net.pt --rank=8 --data imagenet/ --lossless --out 'my nets/' --force"
REAL = {"data": "real images", "fit": {"images": 500}}


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
        (report(curve=(), settings=REAL), "Choose among several targets"),
        (report(settings=REAL), "Fine-tune it"),
        (report(settings=REAL, finetuning={"best_epoch": 2.0, "epochs_done": 2.0}),
         "Fine-tune it for longer"),
        (report(settings=REAL, layers=(layer("a", error=0.02),)), "Fit to more images"),
        (report(settings=REAL), "Compute in integers"),
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
    assert "Fine-tune it" not in titles(report(settings={"data": "made up"}))


def test_every_command_is_one_that_the_command_line_takes(tmp_path: Path) -> None:
    """With what it replaces left out, and files in a folder of their own."""
    parser = typer.main.get_command(cli.app)
    shown = 0
    for one in (slow(), report(curve=(), settings=REAL), report(settings={"data": "made up"}),
                report(layers=(*report().layers, layer("x[0]", held_out_error=0.5)))):  # fmt: skip
        text, _ = page(one, tmp_path, COMMAND)
        for step in next_steps(one):
            words = shlex.split(step.command(COMMAND))
            params = parser.make_context("factorize", words[1:]).params
            assert params["model"] == "net.pt"
            assert str(params["out"]) == "my nets-next"
            assert not params["force"]
            assert step.title in text
            shown += 1
            if step.title == "Ask for measured speed":
                assert (params["rank"], params["lossless"], params["speedup"]) == (None, False, 1.5)
            if "cost most" in step.title:
                assert params["exclude"] == ["x[[]0]"]
    assert shown > 6


def test_keywords_of_a_step_are_those_of_compress(tmp_path: Path) -> None:
    from inspect import signature

    import factorize

    known = signature(factorize.compress).parameters
    for one in (slow(), report(curve=(), settings=REAL), report(settings={"data": "made up"})):
        for step in next_steps(one):
            found = eval(f"dict({step.python})", {"factorize": factorize})
            assert found.keys() <= known.keys()
        assert "factorize.compress(model" in page(one, tmp_path)[0]


@pytest.mark.filterwarnings("ignore")
def test_each_snippet_runs_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)).eval()

    result = compress(build(), torch.randn(1, 3, 12, 12), rank=4, out=tmp_path, latency=False)
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
