"""Layers that are slower in integers stay in float, unless the net is slower so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hurrying
import pytest
from onnx_files import image, node, random, save, twin_of
from spoiled_net import SPOILED, spoiled
from spoiled_net import in_float as floats_of

import factorize
from factorize.errors import DataError
from factorize.measure import LatencyModel, NumberCache, Target, pairs
from factorize.measure.interleave import ChainTime
from factorize.run import deliver, in_integers, kept_in_float
from factorize.spec import ConvSpec
from factorize.types import Speedup


def file(tmp_path: Path) -> Path:
    """Three layers, and two more in a row."""
    weights = {
        "a.weight": random(16, 3, 3, 3), "b.weight": random(8, 16, 3, 1),
        "c.weight": random(16, 8, 1, 3), "fc.weight": random(16, 5),
    }  # fmt: skip
    nodes = [
        node("Conv", "x a.weight", "u", "a", pads=[1, 1, 1, 1]),
        node("Relu", "u", "v"),
        node("Conv", "v b.weight", "w", "b", pads=[1, 0, 1, 0], strides=[2, 1]),
        node("Conv", "w c.weight", "z", "c", pads=[0, 1, 0, 1]),
        node("Relu", "z", "z1"),
        node("GlobalAveragePool", "z1", "z2"),
        node("Flatten", "z2", "z3"),
        node("MatMul", "z3 fc.weight", "y", "fc"),
    ]
    return save(tmp_path / "net.onnx", nodes, weights)


@pytest.fixture(autouse=True)
def _timed_roughly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_SECONDS", "_WARMUP", "_PATIENCE"):
        monkeypatch.setattr(pairs, name, 0.0)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the clock shows: by input channels of a row, and of the nets."""
    shown: dict[str, Any] = {"rows": {}, "mixed": 1.1, "int8": 2.0, "asked": []}

    def row(self: LatencyModel, chain: tuple[ConvSpec, ...], size: Any) -> ChainTime:
        assert self.target.dtype == "int8"
        shown["asked"].append((tuple(stage.in_channels for stage in chain), tuple(size)))
        speed = shown["rows"].get(chain[0].in_channels, 2.0)
        return ChainTime(1, 1 / speed, speed, 0.9 * speed, 1.1 * speed)

    def net(target: Target, one: Any, two: Any, example_input: Any) -> Speedup:
        return hurrying.shown(shown["mixed" if target.dtype == "int8" else "int8"])

    monkeypatch.setattr(LatencyModel, "in_integers", row)
    monkeypatch.setattr(kept_in_float, "speedup", net)
    return shown


def made(tmp_path: Path, int8: Any = True) -> factorize.Result:
    data = [(x,) for x in image(40, 3, 9, 10).split(8)]
    return factorize.compress(
        twin_of(file(tmp_path), image()), image(), rank=2, include=["a"], int8=int8, data=data,
        out=tmp_path / "out", device="cpu", target=Target("onnxruntime", threads=1),
        method="channel_svd",
    )  # fmt: skip


def in_float(tmp_path: Path) -> set[str]:
    """Layers of the delivered file whose weights are floats."""
    return floats_of(tmp_path / "out" / "model.onnx")


def made_of_spoiled(tmp_path: Path, int8: Any = True) -> factorize.Report:
    """What is told of a net with two layers that integers spoil."""
    data = [(x,) for x in image(60, 3, 9, 10).split(12)]
    return factorize.compress(
        twin_of(spoiled(tmp_path / "net.onnx"), image()), image(), rank=2, include=["first"],
        int8=int8, data=data, out=tmp_path / "out", device="cpu", method="channel_svd",
        target=Target("onnxruntime", threads=1),
    ).report  # fmt: skip


def test_a_row_that_is_slower_stays_in_float_and_the_report_says_why(
    tmp_path: Path, timed: dict[str, Any]
) -> None:
    timed["rows"] = {16: 0.5}
    report = made(tmp_path).report
    assert report.int8 is not None
    left = report.int8["check"]["left"]
    assert set(left) == in_float(tmp_path) == {"b", "c", "fc"}
    assert set(report.int8["alone"]["left"]) == {"b", "c", "fc"}
    assert "0.50x in integers (0.45..0.55) on onnxruntime" in left["b"]
    assert any("b and 2 more stayed in float32: 0.50x" in note for note in report.notes)


def test_rows_are_what_nothing_stands_between_with_the_size_of_their_input(
    tmp_path: Path, timed: dict[str, Any]
) -> None:
    made(tmp_path)
    chain = ((3, 2), (9, 10))  # what has replaced the first layer
    assert chain in timed["asked"]
    assert ((3,), (9, 10)) in timed["asked"]  # the original
    assert ((16, 8), (9, 10)) in timed["asked"]
    assert ((16,), ()) in timed["asked"]


@pytest.mark.parametrize("rows", [{3: 1.05}, {3: 0.95}])
def test_what_may_be_noise_does_not_count(
    tmp_path: Path, timed: dict[str, Any], rows: dict[int, float]
) -> None:
    timed["rows"] = rows
    made(tmp_path)
    assert in_float(tmp_path) == set()


def test_where_going_to_and_fro_costs_more_all_are_in_integers(
    tmp_path: Path, timed: dict[str, Any]
) -> None:
    timed |= {"rows": {16: 0.5}, "mixed": 0.9}
    made(tmp_path)
    assert in_float(tmp_path) == set()


def test_a_net_that_is_slower_is_delivered_in_float(tmp_path: Path, timed: dict[str, Any]) -> None:
    timed["int8"] = 0.8
    report = made(tmp_path).report
    assert report.int8 is None
    assert in_float(tmp_path) >= {"b", "c", "fc"}
    assert {one.dtype for one in report.speed} == {"float32"}
    (failure,) = report.failures
    assert "is slower in integers, 0.80x (0.80..0.80) on onnxruntime" in failure
    assert 'int8="all"' in failure or "--int8 all" in failure


def test_all_of_it_is_not_timed(tmp_path: Path, timed: dict[str, Any]) -> None:
    timed |= {"rows": {16: 0.5}, "int8": 0.8}
    report = made(tmp_path, "all").report
    assert timed["asked"] == []
    assert report.int8 is not None
    assert in_float(tmp_path) == set()


def test_a_layer_that_loses_too_much_stays_in_float_and_the_report_says_why(
    tmp_path: Path, timed: dict[str, Any]
) -> None:
    report = made_of_spoiled(tmp_path)
    assert in_float(tmp_path) == SPOILED
    assert report.int8 is not None
    for one in report.int8.values():
        assert set(one["left"]) == set(one["alone"]) == SPOILED
        assert one["held_out"] <= 0.003
    (note,) = [note for note in report.notes if "stayed in float32" in note]
    assert "and 1 more stayed in float32: the net loses too much in integers" in note
    assert report.quality["int8"]["kl"] < report.quality["rewritten"]["kl"] + 0.02


def test_all_of_it_loses_what_it_loses(tmp_path: Path, timed: dict[str, Any]) -> None:
    report = made_of_spoiled(tmp_path, "all")
    assert in_float(tmp_path) == set()
    assert report.int8 is not None
    assert report.int8["check"]["held_out"] is None


@pytest.mark.parametrize("speed, asked", [(0.8, 1.0), (2.0, 3.0)])
def test_no_layer_is_put_back_for_which_the_speed_is_missed(
    tmp_path: Path, timed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, speed: float,
    asked: float,
) -> None:  # fmt: skip
    """Slower than in float, the net is delivered in float; slower than asked, in integers."""
    real = deliver.quantize_delivered
    monkeypatch.setattr(in_integers, "beside_float", lambda *_: hurrying.shown(speed))
    monkeypatch.setattr(
        deliver, "quantize_delivered", lambda *a, **how: real(*a, **{**how, "asked": asked})
    )
    report = made_of_spoiled(tmp_path)
    if speed < 1:
        assert report.int8 is None
        assert len(in_float(tmp_path)) == 6
        (failure,) = report.failures
        assert "float.onnx: the net loses too much" in failure
        assert "is slower so than in float, 0.80x on onnxruntime" in failure
    else:
        assert in_float(tmp_path) == set()
        (note,) = [note for note in report.notes if "all the same" in note]
        assert "in float it is 2.00x as fast, of 3x" in note


def test_by_the_clock(tmp_path: Path) -> None:
    """Both forms of a row are run, and what was measured is kept."""
    cache = NumberCache(tmp_path / "times.sqlite", "times")
    target = Target("onnxruntime", 1, dtype="int8")
    chain = (ConvSpec("", "conv2d", 32, 32, (3, 3), (1, 1), (1, 1), (1, 1)),)
    with cache:
        timer = LatencyModel(target, cache)
        time = timer.in_integers(chain, (14, 14))
        assert time is not None
        assert 0 < time.low <= time.speedup <= time.high
        assert time.dense == pytest.approx(time.chain * time.speedup, rel=0.5)
        assert timer.in_integers(chain, (14, 14)) == time
        assert timer.timed == 1


def test_another_value_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='int8: must be True, False or "all", got 8'):
        made(tmp_path, 8)
