"""Layers that lose too much in integers stay in float, as few as are needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx_files import image, twin_of
from spoiled_net import SPOILED, in_float, spoiled

from factorize.errors import ExportError
from factorize.quantize import Spare, quantize_onnx, spare

HELD_OUT = [image(24, 3, 9, 10)[8:], image(32, 3, 9, 10)[24:]]
CALIBRATION = [image(8, 3, 9, 10)]


def test_what_loses_too_much_stays_in_float_and_the_loss_falls(tmp_path: Path) -> None:
    path, out = spoiled(tmp_path / "net.onnx"), tmp_path / "int8.onnx"
    ruined = quantize_onnx(path, out, CALIBRATION)
    assert in_float(out) == set()
    assert (ruined.held_out, ruined.alone) == (None, {})
    check = quantize_onnx(path, out, CALIBRATION, spare=Spare(HELD_OUT), force=True)
    assert in_float(out) == set(check.left) == set(check.alone) == SPOILED
    assert check.held_out is not None
    assert check.held_out <= spare.TOO_MUCH
    assert check.difference < ruined.difference / 3
    assert min(check.alone.values()) > spare.TOO_MUCH
    (told,) = set(check.left.values())
    assert "the net loses too much in integers" in told
    assert f"and {check.held_out:.2g} without (KL divergence on held-out images)" in told


@pytest.mark.parametrize("kind, told", [("values", "relative squared"), ("embedding", "cosine")])
def test_outputs_are_compared_as_what_they_are(tmp_path: Path, kind: str, told: str) -> None:
    path, out = spoiled(tmp_path / "net.onnx"), tmp_path / "int8.onnx"
    check = quantize_onnx(path, out, CALIBRATION, spare=Spare(HELD_OUT, kind))
    assert set(check.alone) == SPOILED
    assert told in check.left["a"]


def test_where_little_is_lost_all_are_in_integers(tmp_path: Path) -> None:
    path, out = spoiled(tmp_path / "net.onnx"), tmp_path / "int8.onnx"
    left = dict.fromkeys(SPOILED, "excluded")
    check = quantize_onnx(path, out, CALIBRATION, exclude=left, spare=Spare(HELD_OUT))
    assert check.held_out is not None
    assert 0 < check.held_out <= spare.TOO_MUCH
    assert (check.left, check.alone) == (left, {})


def test_without_images_nothing_is_known(tmp_path: Path) -> None:
    path, out = spoiled(tmp_path / "net.onnx"), tmp_path / "int8.onnx"
    check = quantize_onnx(path, out, CALIBRATION, spare=Spare([]))
    assert (check.held_out, check.left) == (None, {})


def test_a_net_of_nothing_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare, "TOO_MUCH", 0.0)
    path, out = spoiled(tmp_path / "net.onnx"), tmp_path / "int8.onnx"
    with pytest.raises(ExportError, match=r"found none \(.*: the net loses too much") as caught:
        quantize_onnx(path, out, CALIBRATION, spare=Spare(HELD_OUT))
    assert "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize(
    "gains, lost, chosen",
    [
        ({}, 1.45, "a"),
        ({"a": 3.0, "b": 1.0, "c": 2.0, "d": 1.0}, 1.45, "b"),
        ({"a": 3.0, "b": 1.0, "c": -2.0, "d": 1.0}, 1.45, "c"),
        ({"a": 3.0, "b": 1.0, "c": 2.0, "d": 1e-4}, 1.45, "b"),  # d alone takes too little away
        ({}, 3.0, "abc"),
    ],
)
def test_those_go_first_that_gained_least_for_what_they_lose(
    tmp_path: Path, gains: dict[str, float], lost: float, chosen: str
) -> None:
    twin = twin_of(spoiled(tmp_path / "net.onnx"), image())
    judge = spare.Judge(Spare([], gains=gains), twin, [])
    judge._rows = {("a",): 0.5, ("b",): 0.5, ("c",): 0.5, ("d",): 0.01}
    assert judge._worth_most(lost * spare.TOO_MUCH) == [(name,) for name in chosen]
