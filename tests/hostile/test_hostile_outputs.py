"""Outputs that cannot be written: nothing is half written, and what was there stays."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from crafted import PROTO, STOP, call, name, text, zipped
from refusing import (
    MARKER,
    RUN,
    Arguments,
    Case,
    Corpus,
    check_refused,
    contents,
    error_of,
    mounted,
    run,
)
from refusing import save_net as net

CORPUS = Corpus()
OUT = ("--out", "out")
PROGRAM = PROTO + call(name("os", "system"), text(f"touch ../{MARKER}")) + STOP


def images(folder: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    np.savez(folder / "d.npz", images=pixels)
    return "d.npz"


@CORPUS.case("out: the output must be a folder", "File exists")
def a_file(folder: Path) -> Arguments:
    (folder / "out").write_text("mine")
    return (net(folder), *RUN, *OUT)


@CORPUS.case("out/a/b: the output must be a folder", "Not a directory")
def below_a_file(folder: Path) -> Arguments:
    (folder / "out").write_text("mine")
    return (net(folder), *RUN, "--out", "out/a/b")


@CORPUS.case("net-factorized: the output must be a folder")
def a_file_of_the_default_name(folder: Path) -> Arguments:
    (folder / "net-factorized").write_text("mine")
    return (net(folder), *RUN)


@CORPUS.case("out: the output must be a folder")
def a_link_to_nowhere(folder: Path) -> Arguments:
    (folder / "out").symlink_to("nowhere/at/all")
    return (net(folder), *RUN, *OUT)


@CORPUS.case("out: the output must be a folder")
def a_link_to_itself(folder: Path) -> Arguments:
    (folder / "out").symlink_to("out")
    return (net(folder), *RUN, *OUT)


@CORPUS.case("/dev/full: the output must be a folder")
def a_device(folder: Path) -> Arguments:
    return (net(folder), *RUN, "--out", "/dev/full")


@CORPUS.case("the output must be a folder", "File name too long")
def a_name_without_end(folder: Path) -> Arguments:
    return (net(folder), *RUN, "--out", "a" * 5000)


@CORPUS.case("the output must be a folder", "File name too long")
def folders_without_end(folder: Path) -> Arguments:
    return (net(folder), *RUN, "--out", "a/" * 3000)


@CORPUS.case("out: has plan.json already", "--force")
def files_of_another_run(folder: Path) -> Arguments:
    (folder / "out").mkdir()
    (folder / "out" / "plan.json").write_text("mine")
    return (net(folder), *RUN, *OUT)


@CORPUS.case("out/model.onnx: must be a file or not there, got a folder")
def a_folder_in_place_of_a_file(folder: Path) -> Arguments:
    (folder / "out" / "model.onnx").mkdir(parents=True)
    (folder / "out" / "plan.json").write_text("mine")
    return (net(folder), *RUN, *OUT, "--force")


@CORPUS.case("out/finetune.ckpt: must be a file or not there, got a folder")
def a_folder_in_place_of_a_checkpoint(folder: Path) -> Arguments:
    (folder / "out" / "finetune.ckpt").mkdir(parents=True)
    return (net(folder), *RUN, *OUT, "--force")


@CORPUS.case("no/c.safetensors: the folder of the calibration must exist")
def a_calibration_in_no_folder(folder: Path) -> Arguments:
    return (net(folder), *RUN, "--data", images(folder), "--save-calibration", "no/c.safetensors")


@CORPUS.case("net.pt: exists already")
def a_calibration_over_the_model(folder: Path) -> Arguments:
    return (net(folder), *RUN, "--data", images(folder), "--save-calibration", "net.pt")


def _saved(content: object) -> Callable[[Path], object]:
    return lambda path: torch.save(content, path)


for _what, _write, _says in [
    ("missing", lambda path: None, "there is no checkpoint to resume from"),
    ("empty", lambda path: path.touch(), "not a readable"),
    ("text", lambda path: path.write_text("hello"), "not a readable"),
    ("a list", lambda path: path.write_bytes(pickle.dumps([1])), "not a readable"),
    ("of another run", _saved({"fingerprint": {"version": "\x1b[2J" * 10**5}}), "is resumed by"),
    ("without state", _saved({"fingerprint": None}), "not a readable"),
    ("a program", lambda path: zipped(PROGRAM, path), "not a readable"),
]:  # fmt: skip

    def _resume(folder: Path, write: Callable[[Path], object] = _write) -> Arguments:
        (folder / "out").mkdir()
        write(folder / "out" / "finetune.ckpt")
        tuned = ("--data", images(folder), "--finetune", "1", "--resume")
        return (net(folder), *RUN, *OUT, *tuned)

    CORPUS.add(f"a checkpoint to resume that is {_what}", _resume, "out/finetune.ckpt: ", _says)


@CORPUS.parametrize()
def test_refused(case: Case, tmp_path: Path) -> None:
    check_refused(case, tmp_path)


def check_full(tmp_path: Path, *options: str, says: str, **limits: int) -> None:
    before = contents(tmp_path)
    ran = run(("net.pt", *RUN, *OUT, *options), tmp_path, hurried=True, **limits)
    assert (ran.code, ran.out) == (2, ""), ran.err[-3000:]
    assert error_of(ran).count("\n") == 1, ran.err[-3000:]
    assert says in ran.err
    after = contents(tmp_path)  # ONNX Runtime keeps something of its own
    assert {k: v for k, v in after.items() if not k.startswith("scratch/.")} == before


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "work").mkdir()
    net(tmp_path / "work")
    images(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize(
    "kilobytes",  # weights, .pt2 and ONNX, the report
    [4, *(pytest.param(size, marks=pytest.mark.nightly) for size in (8, 16)), 32],
)
def test_full_disk(kilobytes: int, work: Path, tmp_path: Path) -> None:
    with mounted(work / "out", f"size={kilobytes}k"):
        check_full(tmp_path, says="No space left on device")


def test_full_disk_under_the_calibration(work: Path, tmp_path: Path) -> None:
    save = ("--data", "d.npz", "--save-calibration", "out/c.safetensors")
    with mounted(work / "out", "size=8k"):
        check_full(tmp_path, *save, says="out/c.safetensors: the calibration cannot be written")


@pytest.mark.parametrize("bytes_", [pytest.param(2_000, marks=pytest.mark.nightly), 8_000])
def test_files_up_to_a_quota(bytes_: int, work: Path, tmp_path: Path) -> None:
    check_full(tmp_path, says="File too large", file=bytes_)
    assert not (work / "out").exists()


def test_read_only(work: Path, tmp_path: Path) -> None:
    """Root may write anywhere but on a file system mounted so."""
    if os.geteuid() == 0:
        with mounted(work / "out", "ro"):
            check_full(tmp_path, says="out: the output must be a folder that can be written to")
        return
    (work / "out").mkdir(mode=0o555)
    check_full(tmp_path, says="out: the output must be a folder that can be written to")
