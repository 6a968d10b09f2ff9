"""The report: its record, the verdict, the terminal, the page, and runs side by side."""

from __future__ import annotations

import html
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from factorize.errors import DataError, OutputError
from factorize.report import (
    CurvePoint,
    LayerReport,
    Report,
    SearchReport,
    compare_reports,
    load_report,
    show,
    verdict,
    words,
    write_html,
)
from factorize.types import Latency, Speedup

HOSTILE = "<img src=x onerror=alert(1)>&\"'$\\frac{$[/red]"
VOID = {"meta", "link", "br"}  # elements of HTML that have no end
PLAIN = re.compile(r"top-?[15]|p[19]0|[A-Za-z]+\d+(?:[.\w]*)")  # digits that are names


def speed(ratio: float = 2.134, p10: float = 2.05, p90: float = 2.2, **other: Any) -> Speedup:
    values: dict[str, Any] = {
        "runtime": "onnxruntime", "device": "cpu", "dtype": "float32", "batch": 1, "threads": 2,
        "runs": 64, "original": Latency(11.31, 10.9, 12.02), "compressed": Latency(5.299, 5.1, 5.6),
    }  # fmt: skip
    return Speedup(**(values | other), speedup=ratio, speedup_p10=p10, speedup_p90=p90)


def layer(name: str, method: str | None = "spatial_svd", **other: Any) -> LayerReport:
    values: dict[str, Any] = {
        "kind": "conv2d", "weight_shape": (64, 64, 3, 3), "rank": (48,) if method else (),
        "variant": "", "macs_original": 115_605_504, "macs": 57_802_752 if method else 115_605_504,
        "params_original": 36_864, "params": 18_432 if method else 36_864,
        "error": 0.0831 if method else None, "held_out_error": 0.0917 if method else None,
        "skip_reason": None if method else "no chain is faster: cp 16 takes 1.21 ms",
        "notes": (), "ms_original": 1.103, "ms": 0.517 if method else 1.214,
        "speedup_low": 2.01, "speedup_high": 2.24,
    }  # fmt: skip
    return LayerReport(name, method=method, **(values | other))


def point(label: str, kind: str, ratio: float, top1: float, **other: Any) -> CurvePoint:
    values: dict[str, Any] = {
        "wanted": ratio - 0.04 if kind == "search" else None, "predicted_speedup": ratio + 0.06,
        "macs": 1 / ratio, "params": 0.9 / ratio, "picked": False,
    }  # fmt: skip
    values |= {"speedup_p10": ratio - 0.07, "speedup_p90": ratio + 0.09}
    return CurvePoint(label, kind, speedup=ratio, quality={"top1": top1}, **(values | other))


def report(**other: Any) -> Report:
    rows = [layer("conv1", None, skip_reason="first layer (3 channels in)", ms=None)]
    rows += [
        layer(f"layer{1 + i // 4}.{i // 2 % 2}.conv{1 + i % 2}", ms_original=1.103 + 0.1 * i,
              method=("spatial_svd", "tucker2", "cp", None)[i % 4])
        for i in range(16)
    ]  # fmt: skip
    curve = (
        point("dense", "dense", 1.0, 91.73, predicted_speedup=None),
        *(point(f"search {r:g}x", "search", r + 0.04, q, picked=r == 2)
          for r, q in ((1.5, 91.52), (2, 91.02), (3, 89.4), (4, 86.1))),
        *(point(f"spatial_svd {s:g}", "uniform", r, q)
          for s, r, q in ((0.5, 1.42, 90.6), (0.3, 1.93, 87.9), (0.2, 2.51, 83.2))),
    )  # fmt: skip
    search = SearchReport(
        {"speedup": 2.0}, {"runtime": "onnxruntime", "threads": 2, "batch": 1, "dtype": "float32",
                           "compiled": False, "device": "Xeon"},
        {"original": 11.02, "compressed": 5.488}, speed(), 17, 811, 12,
        ({"tried": "relative error", "predicted": {"loss": 0.0421, "ms": 5.61},
          "measured": {"loss": 0.0518, "ms": 5.72}},
         {"tried": "corrected", "predicted": {"loss": 0.0467, "ms": 5.488},
          "measured": {"loss": 0.0472, "ms": 5.299}}),
        True,
    )  # fmt: skip
    values: dict[str, Any] = {
        "model": "resnet18",
        "settings": {"method": "auto", "fit": {"images": 1000, "memory": 2e9}, "seed": 0},
        "environment": {"torch": "2.15.0+cpu", "cpu": "Xeon", "cores": 2, "cuda_device": None},
        "layers": tuple(rows), "params": {"original": 11_689_512, "compressed": 6_102_345},
        "macs": {"original": 1_814_073_344, "compressed": 853_217_280},
        "bytes": {"onnx": {"original": 46_830_571, "compressed": 24_519_002}},
        "quality": {"original": {"top1": 91.73, "agreement": 100.0, "kl": 0.0},
                    "rewritten": {"top1": 89.44, "agreement": 95.1, "kl": 0.0716},
                    "finetuned": {"top1": 91.02, "agreement": 97.3, "kl": 0.0213}},
        "quality_of": "10000 test images", "speed": (speed(),), "recalibration": None,
        "finetuning": None, "onnx": {"opset": 18, "nodes": 61}, "seconds": {"plan": 41.7},
        "failures": (), "notes": ("batch-norm recalibration: it helped",),
        "search": search, "curve": curve,
    }  # fmt: skip
    return Report(**(values | other))


def shown(one: Report, width: int = 160) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    show(one, console)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


class Page(HTMLParser):
    """What a test wants of a page; fails where elements are not nested as they should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.cells: list[str] = []  # text in table cells and in lines, outside <data>
        self.values: list[tuple[float, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag == "data":
            self.values.append((float(dict(attrs)["value"] or ""), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] == "data":
            self.values[-1] = (self.values[-1][0], data)
        elif {"td", "th", "p", "dd", "small"} & set(self.open):
            self.cells.append(data)


def page(one: Report, tmp_path: Path, command: str | None = None) -> tuple[str, Page]:
    write_html(one, tmp_path / "report.html", command)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def leaves(value: Any) -> tuple[list[float], list[str]]:
    """All numbers, and all text, in values of JSON; keys are text."""
    if isinstance(value, dict):
        parts = [leaves(v) for v in value.values()] + [([], [str(k)]) for k in value]
    elif isinstance(value, list):
        parts = [leaves(v) for v in value]
    else:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return ([float(value)], []) if number else ([], [str(value)])
    return [n for ns, _ in parts for n in ns], [t for _, ts in parts for t in ts]


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


def test_verdict_is_on_the_target_or_else_on_what_was_measured() -> None:
    one = report(speed=(speed(1.5, 1.4, 1.6, runtime="torch"),))
    assert verdict(one) == verdict(report())
    found = verdict(replace(one, search=None))
    assert found is not None
    assert found[0].startswith("1.50x faster on torch (cpu), 2 threads")
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
    assert "original 11.0/11.3 (-2.6 %), compressed 5.49/5.30 (+3.6 %)" in text
    assert "the budget was not reached: speedup 2" in text
    assert re.search(r"search 2x \* +2.04x \(1.97..2.13\) +49.0 % +91.02 %", text)
    assert re.search(r"spatial_svd 0.5 +1.42x", text)


def test_narrow_terminal_shows_every_layer_on_lines_of_its_own() -> None:
    lines = shown(report(), 80)
    assert max(map(len, lines[1:])) <= 80
    for one in report().layers:
        assert sum(line.startswith(f"{one.name} ") for line in lines) == 1
    replaced = next(line for line in lines if line.startswith("layer1.0.conv1 "))
    assert "1.10→0.517" in replaced
    assert "spatial_svd 48" in replaced
    assert replaced.rstrip().endswith("8.3|9.2")


def test_page_is_one_well_formed_file_that_refers_to_nothing(tmp_path: Path) -> None:
    text, parsed = page(report(), tmp_path, "factorize resnet18.pt --speedup 2")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert parsed.counts["h1"] == 1
    assert "script" not in parsed.counts
    for tag, key, value in parsed.attributes:
        if key in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:")), (tag, key, value)
    assert "http" not in text
    assert "@import" not in text
    ids = [value for _, key, value in parsed.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    for target in re.findall(r'(?:url\(|xlink:href=")#([^")]+)', text):
        assert target in ids
    assert parsed.counts["caption"] == parsed.counts["table"]
    assert "factorize resnet18.pt --speedup 2" in parsed.texts


def test_page_shows_only_numbers_of_the_json(tmp_path: Path) -> None:
    one = report()
    numbers, strings = leaves(json.loads(json.dumps(one.to_dict())))
    found = verdict(one)
    assert found is not None
    parsed = page(one, tmp_path)[1]
    assert len(parsed.values) > 200
    for value, text in parsed.values:
        assert value in numbers
        number = float(re.sub(r"[^\d.e+-]", "", text))
        unit = {"G": 1e9, "M": 1e6, "k": 1e3, "%": 0.01}.get(text[-1], 1)
        assert value == pytest.approx(number * unit, rel=0.006, abs=1e-3) or value == number
    for text in parsed.cells:  # what is no <data> has its digits from the report's own words
        rest = text.replace(found[0], "").replace(words.setup(speed()), "")
        for known in sorted({s for s in strings if s.strip()}, key=len, reverse=True):
            rest = rest.replace(known, "")
        assert not re.search(r"\d", PLAIN.sub("", rest)), text


def test_charts_have_the_reports_values_and_the_pages_colours(tmp_path: Path) -> None:
    text, parsed = page(report(), tmp_path)
    assert parsed.counts["svg"] == 4  # two charts, wide and narrow
    charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    for chart in charts:
        assert 'role="img"' in chart
        assert "<title>" in chart
        assert "var(--ink)" in chart
        assert "<text" in chart  # not its outlines
        assert "DejaVu" not in chart
        assert not re.search(r"#[0-9a-f]{6}", re.sub(r'(href="|url\()#[^")]*', "", chart))
    assert all("1.10 → 0.517" in chart for chart in charts[2:])
    assert all(one.label in chart for one in report().layers for chart in charts[2:])
    assert all("search 3x" in chart for chart in charts[:1])


def test_without_times_the_bars_are_macs_and_without_curve_there_is_none(tmp_path: Path) -> None:
    rows = tuple(replace(one, ms=None, ms_original=None) for one in report().layers)
    text, parsed = page(report(layers=rows, curve=(), search=None, speed=()), tmp_path)
    assert parsed.counts["svg"] == 2
    assert "116M → 57.8M" in text
    assert "before, MACs" in text
    assert "No time was measured" in text


def test_names_and_notes_of_others_are_only_text(tmp_path: Path) -> None:
    rows = (layer(HOSTILE, notes=(HOSTILE,)), layer("b", None, skip_reason=HOSTILE),
            layer("名前.层"))  # fmt: skip
    curve = (point(HOSTILE, "search", 2.0, 90.0), point("dense", "dense", 1.0, 91.0))
    one = report(
        model=HOSTILE, layers=rows, curve=curve, notes=(HOSTILE,), failures=(HOSTILE,),
        quality={"original": {HOSTILE: 1.0}}, quality_of=HOSTILE, settings={HOSTILE: HOSTILE},
    )  # fmt: skip
    text, parsed = page(one, tmp_path, HOSTILE)
    assert "img" not in parsed.counts
    assert parsed.texts.count(HOSTILE) > 8
    assert "<img" not in text
    assert html.escape(HOSTILE, quote=False)[:20] in text
    assert "onerror" in "\n".join(shown(one))


def test_page_that_cannot_be_written_is_told_and_leaves_the_old_one(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_html(report(), tmp_path / "none" / "report.html")
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_html(report(), tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    page(report(), tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_package_loads_no_drawing_and_drawing_no_pyplot(tmp_path: Path) -> None:
    report().save(tmp_path / "r.json")
    code = (
        "import sys; from factorize.report import load_report, write_html\n"
        "assert not {'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "write_html(load_report('r.json'), 'r.html')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    path = {"PYTHONPATH": str(Path(words.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=os.environ | path)


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on PATH to load a page with")
def test_chromium_loads_the_page_without_complaint(tmp_path: Path) -> None:
    page(report(), tmp_path)
    ran = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
         "--dump-dom", (tmp_path / "report.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in ran.stderr
    assert "Accuracy against speedup" in ran.stdout
    assert ran.stdout.rstrip().endswith("</html>")


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
