"""Images made up: of every shape, always the same, with edges as photographs have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ran
from torch import Tensor

from factorize.data.drawings import drawings
from factorize.data.load_data import load_data
from factorize.data.synthetic import count_for, made_up, synthetic_data
from factorize.errors import DataError
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


@pytest.mark.usefixtures("unhurried")
def test_they_are_normalised_as_is_said_or_found() -> None:
    known = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    asked: list[int] = []

    def suit(kinds: Sequence[Tensor], said: Preprocessing | None, count: int) -> Any:
        asked.append(count)
        leaves, drawings = kinds
        assert len(drawings) > len(leaves) >= count
        return [leaves[1:5], drawings[:3]], said or known

    plain, said, found = (
        synthetic_data((3, 8, 8), count=20, **how)
        for how in ({}, {"preprocessing": known}, {"suit": suit})
    )
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (known.mean, known.std))
    (own,), (normalised,), (chosen,), (held,) = (
        next(iter(one)) for one in (plain.train, said.train, found.train, found.holdout)
    )
    assert 0 <= float(own.min()) < float(own.max()) <= 1
    assert torch.allclose(normalised, (own - mean) / std)
    leaves = made_up((3, 8, 8), 40).float() / 255
    assert torch.allclose(chosen, (leaves[1:5] - mean) / std)
    assert (len(own), len(held), asked) == (16, 3, [20])
    assert found.preprocessing == said.preprocessing == known
    assert plain.made_up
    told = [" ".join(one.notes) for one in (plain, said, found)]
    assert ["is not known" in one for one in told] == [True, False, False]
    assert ["read off the batch norms" in one for one in told] == [False, False, True]
    assert all("no image of yours was seen" in one for one in told)


@pytest.mark.usefixtures("unhurried")
def test_large_ones_are_fewer() -> None:
    shapes = (1, 8, 8), (1, 256, 256), (1, 700, 700)
    assert [count_for(shape) for shape in shapes] == [1250, 305, 200]


def test_so_many_are_made() -> None:
    data = synthetic_data((1, 8, 8))
    assert sum(len(batch[0]) for split in (data.train, data.holdout) for batch in split) == 60


def test_drawings_are_strokes_on_a_plain_ground() -> None:
    made = drawings((1, 32, 32), 200).float() / 255
    assert torch.equal(made, drawings((1, 32, 32), 200).float() / 255)
    assert not torch.equal(made, drawings((1, 32, 32), 200, seed=1).float() / 255)
    ground = made.flatten(1).mode(1).values
    covered = (made.flatten(1) != ground[:, None]).float().mean(1)
    assert 0.05 < float(covered.median()) < 0.6
    assert float(((ground == 0) | (ground == 1)).float().mean()) > 0.5
    tinted = drawings((3, 5, 40), 20).float()
    assert tinted.shape == (20, 3, 5, 40)
    assert not torch.equal(tinted[:, 0], tinted[:, 1])


def test_the_command_makes_them_up(
    command: Callable[..., Ran], tmp_path: Path, unexported: None
) -> None:
    torch.save(torch.nn.Sequential(
        torch.nn.Conv1d(1, 16, 9), torch.nn.ReLU(), torch.nn.Conv1d(16, 16, 9)
    ), tmp_path / "net.pt")  # fmt: skip
    base = "net.pt", "--input-shape", "1,64", "--device", "cpu", "--data", "synthetic"
    ran = command(*base, "--rank", "0.3", "--out", "out")
    assert ran.code == 0, ran.err
    assert ran.first.startswith("images: no image of yours was seen")
    assert "\ninput: 1x64 float32, " in ran.first
    assert "no image of yours was seen" in ran.out
    tuned = command(*base, "--rank", "0.3", "--finetune", "1", "--out", "tuned")
    assert (tuned.code, tuned.err.count("\n")) == (2, 1)
    assert "must have real images to tune on" in tuned.err
