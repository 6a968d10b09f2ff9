"""Images made up: of every shape, always the same, with edges as photographs have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Ran
from torch import Tensor

import factorize
from factorize.data.digits import digits_data
from factorize.data.load_data import load_data
from factorize.data.synthetic import made_up, synthetic_data
from factorize.errors import DataError
from factorize.measure import accuracy
from factorize.models.digits import load_digits_model
from factorize.types import Preprocessing

SHAPES = [(3, 32, 32), (1, 8, 8), (4, 17, 40), (3, 1, 1), (3, 600, 20), (2, 5, 24, 24), (1, 400),
          (2, 9)]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_they_have_every_shape_and_are_always_the_same(shape: tuple[int, ...]) -> None:
    made = made_up(shape, 4, seed=3)
    assert made.shape == (4, *shape)
    assert made.dtype == (torch.float32 if len(shape) == 2 else torch.uint8)
    assert torch.equal(made, made_up(shape, 4, seed=3))
    assert not torch.equal(made, made_up(shape, 4, seed=4))
    assert not torch.equal(made[0], made[1])
    if len(shape) == 2:
        assert 0 < float(made.abs().max()) <= 1


def test_they_have_edges_as_no_noise_has() -> None:
    """Differences of neighbours: mostly small, some large; Gaussian noise has a kurtosis of 3."""
    made = made_up((1, 64, 64), 32).float()
    step = (made[..., 1:] - made[..., :-1]).flatten()
    kurtosis = float((step - step.mean()).pow(4).mean() / step.var() ** 2)
    assert kurtosis > 8
    assert 30 < float(made.std()) < 90
    assert 90 < float(made.mean()) < 165


def test_grey_is_grey_and_colours_go_together() -> None:
    colours = made_up((3, 32, 32), 16).float().movedim(1, 0).flatten(1)
    correlation = torch.corrcoef(colours)
    assert 0.5 < float(correlation.min()) < 0.99


def test_leaves_move_from_frame_to_frame() -> None:
    made = made_up((1, 4, 24, 24), 8).float()
    near = (made[:, :, 1:] - made[:, :, :-1]).abs().mean()
    other = (made[1:] - made[:-1]).abs().mean()
    assert 0 < float(near) < 0.7 * float(other)


def test_what_is_no_input_is_refused() -> None:
    with pytest.raises(DataError, match=r"must be \(C, L\), \(C, H, W\) or \(C, D, H, W\)"):
        made_up((3,), 1)
    with pytest.raises(DataError, match="must be known"):
        load_data("synthetic")
    with pytest.raises(DataError, match=r"one per channel \(1\), got 3 and 3"):
        synthetic_data((1, 8, 8), count=8, preprocessing=Preprocessing((0.5,) * 3, (0.5,) * 3))


def test_they_are_normalised_as_is_said_or_found() -> None:
    known = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    asked: list[Tensor] = []

    def range_of(images: Tensor) -> Preprocessing:
        asked.append(images)
        return known

    plain, said, found = (
        next(iter(synthetic_data((3, 8, 8), count=20, **how).holdout))[0]
        for how in ({}, {"preprocessing": known}, {"range_of": range_of})
    )
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (known.mean, known.std))
    assert 0 <= float(plain.min()) < float(plain.max()) <= 1
    assert torch.allclose(said, (plain - mean) / std)
    assert torch.equal(found, said)
    assert len(asked) == 1
    assert synthetic_data((3, 8, 8), count=20, range_of=range_of).preprocessing == known
    notes = synthetic_data((3, 8, 8), count=20, range_of=lambda _: None).notes
    assert any("range of the input is not known" in note for note in notes)
    assert any("no image of yours was seen" in note for note in notes)


def test_a_net_fitted_to_them_is_better_than_one_fitted_to_its_weights() -> None:
    net, x, test = load_digits_model(), torch.randn(1, 1, 8, 8), digits_data().test
    assert test is not None
    scores = {}
    for data in ("synthetic", None):
        result = factorize.compress(net, x, rank=8, data=data, latency=False, device="cpu")
        scores[data] = accuracy(result.model, test)["top1"]
        if data:
            report = result.report
    assert scores["synthetic"] > scores[None] + 15
    assert "recalibrated" not in report.quality
    assert "made-up images, no real ones" in report.quality_of
    assert report.settings["fit"]["how"] == "sequential"
    assert report.settings["input"]["preprocessing"]["std"][0] < 1


def test_the_command_makes_them_up(command: Callable[..., Ran], tmp_path: Path) -> None:
    torch.save(torch.nn.Sequential(
        torch.nn.Conv1d(1, 16, 9), torch.nn.ReLU(), torch.nn.Conv1d(16, 16, 9)
    ), tmp_path / "net.pt")  # fmt: skip
    base = "net.pt", "--input-shape", "1,64", "--device", "cpu", "--data", "synthetic"
    ran = command(*base, "--rank", "0.3", "--out", "out")
    assert ran.code == 0, ran.err
    assert ran.err.startswith("input: 1x64 float32, ")
    assert "no image of yours was seen" in ran.out
    tuned = command(*base, "--rank", "0.3", "--finetune", "1", "--out", "tuned")
    assert (tuned.code, tuned.err.count("\n")) == (2, 1)
    assert "must have real images to tune on" in tuned.err
