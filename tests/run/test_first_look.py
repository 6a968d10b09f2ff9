"""What goes in, and what the original makes of it: told first, and recorded."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from compressing import X, net
from conftest import Ran

import factorize
from factorize.data.load_data import load_data
from factorize.measure import accuracy
from factorize.report import load_report
from factorize.run.first_look import _doubt
from factorize.types import Preprocessing

LABELLED = [(torch.rand(20, 3, 16, 16), torch.arange(20) % 5) for _ in range(4)]


@pytest.fixture
def arguments(tmp_path: Path) -> tuple[str, ...]:
    torch.save(net(), tmp_path / "net.pt")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "images.npz", images=rng.integers(0, 256, (80, 16, 16, 3), np.uint8),
             labels=rng.integers(0, 5, 80))  # fmt: skip
    return ("net.pt", "--rank", "4", "--input-shape", "3,16,16", "--data", "images.npz",
            "--device", "cpu")  # fmt: skip


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name.startswith("factorize")]


def test_the_command_tells_it_first_and_the_report_has_it(
    command: Callable[..., Ran], arguments: tuple[str, ...], tmp_path: Path, unexported: None
) -> None:
    steps = "--mean", "0.5,0.4,0.3", "--std", "0.2,0.25,0.3"
    ran = command(*arguments, *steps, "--out", "out")
    assert ran.code == 0, ran.err
    told, scored = ran.first.splitlines()
    known = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    held = list(load_data("images.npz", preprocessing=known, input_shape=(3, 16, 16)).holdout)
    images = torch.cat([batch[0] for batch in held])
    found = load_report(tmp_path / "out" / "report.json").settings["input"]
    assert found["shape"] == [3, 16, 16]
    assert found["dtype"] == "float32"
    assert found["images"] == len(images)
    assert [found[name] for name in ("minimum", "maximum", "mean", "std")] == pytest.approx(
        [float(v) for v in (images.min(), images.max(), images.mean(), images.std())], rel=1e-3
    )
    assert found["preprocessing"]["mean"] == [0.5, 0.4, 0.3]
    assert told == (
        f"input: 3x16x16 float32, {found['minimum']:.3g} to {found['maximum']:.3g} "
        f"(mean {found['mean']:.3g}, std {found['std']:.3g}); pixels / 255, normalised by "
        "mean (0.5, 0.4, 0.3) and std (0.2, 0.25, 0.3)"
    )
    top1 = accuracy(net(), held)["top1"]
    assert scored == (
        f"original: top-1 {top1:.2f} % on {len(images)} held-out images, as by guessing: are "
        "--mean, --std and the labels right?"
    )


@pytest.mark.parametrize(
    ("top1", "classes", "doubted"),
    [(10.55, 10, True), (13.7, 10, True), (14.1, 10, False), (98.9, 10, False), (None, 10, False)],
)
def test_a_score_as_by_guessing_is_doubted(top1: float | None, classes: int, doubted: bool) -> None:
    """Up to two standard errors above chance, of 256 images."""
    assert bool(_doubt(top1, torch.arange(256) % classes)) == doubted


def test_pixels_that_nobody_normalised_are_said_to_be_so(
    command: Callable[..., Ran], arguments: tuple[str, ...], unexported: None
) -> None:
    ran = command(*arguments, "--resize", "20", "--crop", "16", "--out", "out")
    assert ran.code == 0, ran.err
    told = ran.first.splitlines()[0]
    assert told.endswith("; resized to 20, cropped to 16, pixels / 255, not normalised")


def test_a_wrong_wish_is_told_without_it(
    command: Callable[..., Ran], arguments: tuple[str, ...]
) -> None:
    ran = command(*arguments[:1], "--rank", "0", *arguments[3:])
    assert (ran.code, ran.err.count("\n")) == (2, 1)


def test_a_library_logs_it_of_whatever_batches_there_are(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "factorize")
    report = factorize.compress(net(), X, rank=4, data=LABELLED, latency=False).report
    assert lines(caplog)[0].endswith("; as the data yields them")
    assert lines(caplog)[1].startswith("original: top-1 ")
    assert report.settings["input"]["preprocessing"] is None
    assert capsys.readouterr() == ("", "")


def test_without_data_there_is_nothing_to_tell(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "factorize")
    fit = factorize.FitConfig("weights")
    report = factorize.compress(net(), X, rank=4, fit=fit, latency=False).report
    assert report.settings["input"] == {}
    assert lines(caplog) == []


def test_a_score_of_ones_own_is_told_and_nothing_that_compares(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def psnr(student: torch.Tensor, _: torch.Tensor, batch: tuple[torch.Tensor, ...]) -> float:
        return float(student.mean() * 0 + len(batch[0]))

    caplog.set_level(logging.INFO, "factorize")
    images = [batch[0] for batch in LABELLED]
    factorize.compress(net(), X, rank=4, data=images, latency=False)
    assert len(lines(caplog)) == 1
    factorize.compress(net(), X, rank=4, data=images, score=psnr, latency=False)
    assert lines(caplog)[-1].startswith("original: psnr ")


def test_images_in_a_list_are_told_by_one_of_them(caplog: pytest.LogCaptureFixture) -> None:
    from factorize.run.first_look import _described
    from factorize.types import Data

    batch = ([torch.zeros(3, 8, 9), torch.ones(3, 10, 7)],)
    found = _described([batch], Data([batch], [batch]))
    assert (found["shape"], found["images"]) == ([3, 8, 9], 2)
    assert (found["minimum"], found["maximum"]) == (0, 1)


def test_images_that_the_model_does_not_take_are_one_line(
    command: Callable[..., Ran], tmp_path: Path
) -> None:
    torch.save(torch.nn.Sequential(torch.nn.Conv1d(1, 4, 3), torch.nn.Conv1d(4, 4, 3)),
               tmp_path / "net.pt")  # fmt: skip
    np.savez(tmp_path / "signals.npz", images=np.random.default_rng(0).normal(size=(40, 1, 64)))
    ran = command("net.pt", "--data", "signals.npz", "--macs", "0.6", "--device", "cpu")
    assert ran.code == 2
    assert ran.err.splitlines()[-1].startswith("error: ")
    assert re.search(r"must run on its batches, got for \dx1x1x64 RuntimeError: ", ran.err)
