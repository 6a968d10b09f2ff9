"""The report: its record, the verdict, the terminal, and runs side by side."""

from __future__ import annotations

import html
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reports import layer, page, report, shown, speed
from rich.console import Console

from factorize.errors import DataError
from factorize.report import Report, compare_reports, load_report, verdict, words
from factorize.types import Speedup


def test_report_comes_back_from_its_file(tmp_path: Path) -> None:
    one = report()
    one.save(tmp_path / "report.json")
    assert load_report(tmp_path / "report.json") == one
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_what_is_not_finite_is_null_in_the_file_and_nan_when_read(tmp_path: Path) -> None:
    one = report(quality={"original": {"own": math.nan}, "rewritten": {"own": math.inf}})
    one.save(tmp_path / "r.json")
    assert "NaN" not in (tmp_path / "r.json").read_text()
    back = load_report(tmp_path / "r.json")
    assert math.isnan(back.quality["rewritten"]["own"])
    assert page(back, tmp_path)[1].counts["h1"] == 1


def test_derived_values_follow_from_the_measured_ones() -> None:
    derived = report().derived()
    assert derived["left"]["macs"] == 853_217_280 / 1_814_073_344
    assert derived["quality_change"]["top1"] == pytest.approx(-0.71)
    assert derived["prediction_error"]["compressed"] == pytest.approx(5.488 / 5.299 - 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=99), "version must be 1, got 99"),
        (lambda c: c.update(format="other"), '"format": "factorize-report"'),
        (lambda c: c.pop("macs"), "macs: is missing"),
        (lambda c: c.update(extra=1), "extra: is no entry"),
        (
            lambda c: c["layers"][2].update(macs="many"),
            r"layers\[2\].macs: must be int, got 'many'",
        ),
        (lambda c: c["search"]["measured"].update(speedup=[1]), "search.measured.speedup"),
        (lambda c: c["curve"][0].update(picked=1), r"curve\[0\].picked: must be bool"),
        (lambda c: c.update(layers={}), "layers: must be"),
    ],
)
def test_file_that_is_no_report_is_refused_in_one_line(
    tmp_path: Path, change: Any, message: str
) -> None:
    content = json.loads(json.dumps(report().to_dict()))
    change(content)
    path = tmp_path / "r.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        load_report(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file_and_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be a readable file"):
        load_report(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("{half")
    with pytest.raises(DataError, match="must be JSON"):
        load_report(tmp_path / "text.json")


@pytest.mark.parametrize(
    ("measured", "start", "faster"),
    [
        (speed(), "2.13x faster on onnxruntime, 2 threads, batch 1 (2.05..2.20); ", True),
        (speed(0.97, 0.95, 1.02), "NOT FASTER: 0.97x on onnxruntime, ", False),
        (speed(1.0, 1.0, 1.0), "NOT FASTER: 1.00x", False),
        (speed(1.04, 0.98, 1.1), "NO FASTER than the noise: 1.04x", False),
        (speed(math.nan, math.nan, math.nan), "NO FASTER", False),
        (speed(runtime="torch", device="cuda", dtype="float16", batch=64),
         "2.13x faster on torch (cuda), float16, batch 64 ", True),
    ],
)  # fmt: skip
def test_verdict_is_the_first_line(measured: Speedup, start: str, faster: bool) -> None:
    search = report().search
    assert search is not None
    one = report(search=replace(search, measured=measured))
    found = verdict(one)
    assert found is not None
    line, is_faster = found
    assert is_faster is faster
    assert line.startswith(start)
    assert line.endswith("; top-1 91.02 % (-0.71)")
    assert shown(one)[0] == line


@pytest.mark.parametrize(
    ("measured", "start"),
    [
        (speed(0.13, 0.06, 7.83), "0.13x on onnxruntime, 2 threads, batch 1 (0.06..7.83); run"),
        (speed(1.4, 0.9, 1.9), "1.40x on onnxruntime"),
        (speed(1.4, 0.96, 1.9), None),
        (speed(2.8, 1.1, 4.9), None),
        (speed(0.4, 0.2, 0.9), None),
    ],
)  # fmt: skip
def test_what_a_busy_machine_tells_is_no_verdict(measured: Speedup, start: str | None) -> None:
    """Spreads to both sides of 1, by more than a factor of two."""
    search = report().search
    assert search is not None
    found = verdict(report(search=replace(search, measured=measured)))
    assert found is not None
    line, faster = found
    assert faster is (measured.speedup_p10 > 1)
    busy = "NOT MEASURABLE: the machine was too busy: "
    assert line.startswith(busy) is (start is not None)
    assert line.startswith(f"{busy}{start}" if start else "")


@pytest.mark.parametrize(
    ("budget", "advised"),
    [({"macs": 0.5}, True), ({"macs": 0.5, "params": 0.6}, True), (None, True),
     ({"macs": 0.5, "speedup": 1.2}, False), ({"max_drop": 1.0}, False)],
)  # fmt: skip
@pytest.mark.parametrize("ratio", [0.52, 1.03, 1.5])
def test_a_slower_net_is_told_to_ask_for_time_unless_it_did(
    budget: dict[str, float] | None, advised: bool, ratio: float
) -> None:
    measured = speed(ratio, ratio - 0.04, ratio + 0.04)
    search = report().search
    assert search is not None
    one = report(
        search=replace(search, budget=budget, measured=measured) if budget else None,
        speed=(measured,), curve=(),
    )  # fmt: skip
    found = verdict(one)
    assert found is not None
    advice = "; fewer MACs are not always faster: ask for --speedup 1.5"
    assert found[0].endswith(advice) is (advised and ratio < 1.5)
    swept = verdict(replace(one, curve=report().curve)) if budget else None
    assert swept is None or "ask for" not in swept[0]


def test_verdict_is_on_the_target_or_else_on_what_was_measured() -> None:
    one = report(speed=(speed(1.5, 1.4, 1.6, runtime="torch"),))
    assert verdict(one) == verdict(report())
    found = verdict(replace(one, search=None))
    assert found is not None
    assert found[0].startswith("1.50x faster on torch, 2 threads")
    assert verdict(replace(one, search=None, speed=())) is None


def test_terminal_names_the_layers_that_became_slower_the_worst_first() -> None:
    slow = {"speedup_low": 0.4, "speedup_high": 0.95}
    rows = (
        layer("a", ms=1.2133, **slow), layer("b"), layer("c", ms=2.206, **slow),
        layer("d", None, ms=9.9, **slow), layer("e", ms=1.2133, speedup_low=0.8, speedup_high=1.02),
    )  # fmt: skip
    text = "\n".join(shown(report(layers=rows)))
    assert "slower than dense: c 2.00x, a 1.10x\n" in text
    assert "slower than dense" not in "\n".join(shown(report()))


def test_terminal_has_prediction_curve_and_unmet_budget() -> None:
    search = report().search
    assert search is not None
    text = "\n".join(shown(report(search=replace(search, reached=False))))
    assert "ms predicted/measured: 5.49/5.30 (+3.6 %)" in text
    assert "the budget was not reached: speedup 2" in text
    assert re.search(r"search 2x \* +2.04x \(1.97..2.13\) +49.0 % +91.02 %", text)
    assert re.search(r"spatial_svd 0.5 +1.42x", text)


def test_layers_have_times_of_their_own_and_no_sum_of_them(tmp_path: Path) -> None:
    """Not all are timed, and in int8 both of a layer's times are."""
    first, *others = report().layers
    rows = (replace(first, ms_original=None), *others)
    one = report(search=None, speed=(speed(threads=1),), layers=rows)
    lines = shown(one)
    assert next(line for line in lines if line.startswith("conv1 ")).count("not timed") == 1
    total = next(line for line in lines if line.startswith("sum of layers"))
    assert total.count("→") == 2  # MACs and parameters
    assert any("1 thread," in line for line in lines)
    assert "not timed" in page(one, tmp_path)[0]
    assert "ms in int8" not in page(one, tmp_path)[0]


def test_int8_that_wins_nothing_is_told(tmp_path: Path) -> None:
    exact = speed(3.47, 3.4, 3.5, net="in float32")
    for ratio, told in ((3.35, True), (4.0, False)):
        one = report(search=None, speed=(speed(ratio, ratio, ratio, dtype="int8"), exact))
        line = "int8 is not faster than the same chains in float32 here: 3.35x against 3.47x"
        text = page(one, tmp_path)[0]
        assert (line in shown(one)) == (line in text) == told
        assert "ms in int8 before" in text
    alone = speed(3.8, 3.7, 3.9, net="int8 alone")
    for ratio, told in ((3.5, True), (4.0, False)):
        timed = (speed(ratio, ratio, ratio, dtype="int8"), exact, alone)
        line = "the chains make it no faster than int8 alone here: 3.50x against 3.80x"
        text = shown(report(search=None, speed=timed))
        assert (line in text) == told
        assert "same chains in float32 here" not in text


def test_a_score_of_ones_own_is_what_is_shown(tmp_path: Path) -> None:
    """In the verdict, the tile and the chart; a measure of all images before one of batches."""
    values = ({"F1": 0.95, "f1": 0.94, "top1": 91.0}, {"F1": 0.97, "f1": 0.93, "top1": 92.0})
    curve = tuple(replace(one, quality=values[0]) for one in report().curve)
    for own in ({"F1": True, "f1": True}, {"f1": True}):
        one = report(
            quality=dict(zip(("original", "rewritten"), values, strict=True)), curve=curve,
            settings={"higher_is_better": own, "outputs": {"score": "f1"}},
        )  # fmt: skip
        name, said = next(iter(own)), "your own, higher is better"
        if name == "f1":
            said = "your own, mean of the batches, higher is better"
        text = page(one, tmp_path)[0]
        now, before = (f"{values[i][name]:.4g}" for i in (1, 0))
        assert shown(one)[0].endswith(f"; {name} {now} ({float(now) - float(before):+.3g})")
        assert f"{before}</data> originally, {html.escape(said)}" in text
        assert f">{name}</text>" in text
        assert "10000 test images; " in " ".join(shown(one))
        assert words.has_lost(one) == (name == "f1")


def test_narrow_terminal_shows_every_layer_on_lines_of_its_own() -> None:
    lines = shown(report(), 80)
    assert max(map(len, lines[1:])) <= 80
    for one in report().layers:
        assert sum(line.startswith(f"{one.name} ") for line in lines) == 1
    replaced = next(line for line in lines if line.startswith("layer1.0.conv1 "))
    assert "1.10→0.517" in replaced
    assert "spatial_svd 48" in replaced
    assert replaced.rstrip().endswith("8.3|9.2")


def compared(tmp_path: Path, *reports: Report) -> str:
    for index, one in enumerate(reports):
        (tmp_path / f"run{index}").mkdir()
        one.save(tmp_path / f"run{index}" / "report.json")
    console = Console(file=io.StringIO(), width=160)
    paths = [tmp_path / f"run{i}" / ("report.json" if i else "") for i in range(len(reports))]
    console.print(compare_reports(paths))  # folders and files
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_compared_runs_stand_side_by_side(tmp_path: Path) -> None:
    worse = report(quality={"original": {"top1": 91.73}, "rewritten": {"top1": 88.5}},
                   search=None, speed=(speed(1.5, 1.4, 1.6),))  # fmt: skip
    text = compared(tmp_path, report(), worse)
    assert re.search(r"run0 +run1", text)
    assert re.search(r"2.13x \(2.05..2.20\) +1.50x \(1.40..1.60\)", text)
    assert re.search(r"91.73 % → 91.02 % +91.73 % → 88.50 %", text)
    assert re.search(r"budget +speedup 2 *\n", text)
    assert "5 dense, 4 spatial_svd, 4 tucker2, 4 cp" in text
    assert "different" not in text


def test_what_forbids_a_comparison_is_said(tmp_path: Path) -> None:
    elsewhere = {"torch": "2.6.0", "cpu": "EPYC", "cores": 2, "cuda_device": None}
    search = report().search
    assert search is not None
    text = compared(
        tmp_path, report(),
        report(environment=elsewhere, model="vgg16_bn", quality_of="50 test images",
               search=replace(search, measured=speed(threads=4))),
    )  # fmt: skip
    assert "different machines, times are not comparable: Xeon, 2; EPYC, 2" in text
    assert "different targets" in text
    assert "different models" in text
    assert "quality was measured on different things" in text
    assert "different torch: 2.15.0+cpu, 2.6.0" in text
