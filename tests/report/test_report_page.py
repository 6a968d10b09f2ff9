"""The report's page: one file that refers to nothing, with the values of the record only."""

from __future__ import annotations

import csv
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reports import layer, page, point, report, shown, speed

from factorize.errors import OutputError
from factorize.report import verdict, words, write_html
from factorize.report.glossary import terms

HOSTILE = "<img src=x onerror=alert(1)>&\"'$\\frac{$[/red]"
PLAIN = re.compile(r"top-?[15]|p[19]0|[A-Za-z]+\d+(?:[.\w]*)")  # digits that are names


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


def test_page_is_one_well_formed_file_that_refers_to_nothing(tmp_path: Path) -> None:
    text, parsed = page(report(), tmp_path, "factorize resnet18.pt --speedup 2")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert parsed.counts["h1"] == 1
    assert parsed.counts["script"] == 1  # which loads nothing
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
    assert "<span>resnet18.pt</span> <span>--speedup</span> <span>2</span>" in text


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
        if text in terms().values():
            continue
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
    assert parsed.counts["svg"] == 2  # the layers'
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


USED = """
<script>
const layers = document.querySelector('[aria-label="Layers"] table');
const heads = [...layers.tHead.rows[0].cells];
const told = {};
const firsts = () => [...layers.tBodies[0].rows].slice(0, 2).map((row) => shown(row.cells[0]));
const sort = heads[2].querySelector("button");
sort.click(); told.rising = firsts();
sort.click(); told.falling = firsts(); told.order = heads[2].getAttribute("aria-sort");
sort.click(); told.again = firsts();
const last = () => shown([...layers.tBodies[0].rows].at(-1).cells[0]);
heads[3].querySelector("button").click(); told.last = [last()];
heads[3].querySelector("button").click(); told.last.push(last());
const input = document.querySelector('input[aria-label="Filter: Layers"]');
input.value = "TUCKER2"; input.oninput();
told.left = [...layers.tBodies[0].rows].filter((row) => !row.hidden).length;
told.count = input.nextSibling.textContent;
let blob;
URL.createObjectURL = (made) => { blob = made; return "data:,"; };
HTMLAnchorElement.prototype.click = function () { told.file = this.download; };
layers.caption.querySelector(".csv").click();
document.querySelector("dfn").focus();
told.tip = getComputedStyle(document.querySelector("dfn .tip")).display;
blob.text().then((text) => {
  told.csv = text;
  const box = document.createElement("template");
  box.id = "told"; box.dataset.told = JSON.stringify(told); document.body.append(box);
});
</script>
"""


def loaded_by_chromium(file: Path, profile: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--no-first-run", f"--user-data-dir={profile}", "--enable-logging=stderr",
         "--virtual-time-budget=2000", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on PATH to load a page with")
def test_chromium_loads_the_page_and_tables_sort_filter_and_are_csv(tmp_path: Path) -> None:
    page(report(), tmp_path)
    file = tmp_path / "report.html"
    file.write_text(file.read_text(encoding="utf-8") + USED, encoding="utf-8")
    ran = loaded_by_chromium(file, tmp_path / "profile")
    assert "CONSOLE" not in ran.stderr
    found = re.search(r'data-told="([^"]*)"', ran.stdout)
    assert found is not None
    told = json.loads(html.unescape(found[1]))
    names = [one.label for one in report().layers]
    assert told["rising"] == names[:2]  # alike ones stay in their order
    assert told["falling"] == names[:-3:-1]
    assert told["order"] == "descending"
    assert told["again"] == names[:2]
    assert told["last"] == ["conv1", "conv1"]  # which has no value there
    assert (told["left"], told["count"], told["tip"]) == (4, "4 of 17", "block")
    assert told["file"] == "layers.csv"
    rows = list(csv.DictReader(io.StringIO(told["csv"])))
    assert {row["layer"] for row in rows} == set(names)
    assert {float(row["MACs before"]) for row in rows} == {115_605_504.0}
    assert rows[0]["method, rank"].startswith(("dense: ", "tucker2 ", "cp ", "spatial_svd "))
