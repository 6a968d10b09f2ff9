"""Options of a size, depth or spelling that nobody means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from refusing import Arguments, Case, Corpus, check_refused, save_net

CORPUS = Corpus()
ESCAPES = "\x1b]0;owned\x07\x1b[2J"
SHAPE = ("--input-shape", "3,16,16")
BASE = ("--rank", "4", *SHAPE)
ARCH = (*BASE, "--arch", "torchvision:resnet18", "--arch-args")

for _what, _options, _says in [
    ("an input of 12 TB", ("--rank", "4", "--input-shape", "3,1000000,1000000"), "--input-shape"),
    ("sizes without end", ("--rank", "4", "--input-shape", "9" * 5000 + ",1,1"), "--input-shape"),
    ("a negative size", ("--rank", "4", "--input-shape", "-3,16,16"), "--input-shape"),
    ("a rank of NaN", (*SHAPE, "--rank", "nan"), "--rank"),
    ("a rank of 1e999", (*SHAPE, "--rank", "1e999"), "--rank"),
    ("a rank without end", (*SHAPE, "--rank", "9" * 5000), "--rank"),
    ("a rank in escape codes", (*SHAPE, "--rank", ESCAPES), "--rank"),
    ("an energy of NaN", (*SHAPE, "--energy", "nan"), "--energy"),
    ("a speedup of NaN", (*SHAPE, "--speedup", "nan"), "speedup must be"),
    ("a speedup without end", (*SHAPE, "--speedup", "inf"), "speedup must be"),
    ("a sweep of NaN", (*SHAPE, "--sweep", "nan"), "sweep must be"),
    ("a sweep without end", (*SHAPE, "--sweep", "2," * 10_000), "sweep must be"),
    ("a pick of NaN", (*SHAPE, "--sweep", "2", "--pick", "nan"), "pick must be"),
    ("lists without end", (*ARCH, "[" * 100_000), "--arch-args must be JSON"),
    ("a number without end", (*ARCH, '{"num_classes": ' + "9" * 5000 + "}"), "--arch-args must be"),
    ("10**12 classes", (*ARCH, '{"num_classes": 1000000000000}'), "can't allocate memory"),
    ("10**11 threads", (*BASE, "--threads", "99999999999"), "--threads"),
    ("a batch of 10**11", (*BASE, "--batch", "99999999999"), "--batch"),
    ("a seed of 10**30", (*BASE, "--seed", "9" * 30), "--seed"),
    ("a mean of NaN", (*BASE, "--mean", "nan", "--std", "1"), "--mean"),
    ("a std of NaN", (*BASE, "--mean", "0", "--std", "nan"), "--std"),
    ("images of 10**12 pixels", (*BASE, "--data", "d.npz", "--resize", "1000000"), "resize: must"),
    ("crops of 10**12 pixels", (*BASE, "--data", "d.npz", "--crop", "1000000"), "crop: must"),
    ("no memory", (*BASE, "--data", "d.npz", "--calibration-memory", "nan"), "calibration: needs"),
    ("a rate of NaN", (*BASE, "--data", "d.npz", "--finetune", "1", "--lr", "nan"), "lr: the"),
    ("a glob without end", (*BASE, "--include", "*a" * 3000 + "b"), "--include"),
    ("a function in escape codes", (*BASE, "--arch", f"{ESCAPES}:f"), "cannot import"),
    ("an option in escape codes", (*BASE, f"--{ESCAPES}"), "No such option"),
    ("an option without end", ("--" + "x" * 100_000,), "No such option"),
]:

    def _build(folder: Path, options: Arguments = _options) -> Arguments:
        np.savez(folder / "d.npz", images=np.zeros((20, 16, 16, 3), np.uint8))
        return (save_net(folder), *options)

    CORPUS.add(_what, _build, _says)


@CORPUS.parametrize()
def test_refused(case: Case, tmp_path: Path) -> None:
    check_refused(case, tmp_path)
