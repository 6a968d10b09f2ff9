"""Plans, reports and results in a notebook, as figures, frames and text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from reports import page, report, shown

from factorize.errors import DataError
from factorize.report import Curve, load_report, words
from factorize.run.compress import Result
from factorize.types import ConvSpec, LayerPlan, Plan

HOSTILE = "<img src=x>"


def test_notebooks_show_reports_results_plans_and_the_curve() -> None:
    one = report(model=HOSTILE)
    told = words.verdict(one)
    assert told is not None
    text = one._repr_html_()
    assert told[0] in text
    assert "<svg" in text
    assert "var(--" not in text  # the page's colours, which a notebook has not
    assert text.count("<tr>") == len(one.layers) + 1
    ids = {line.split('"')[0] for line in text.split(' id="')[1:]}
    again = {line.split('"')[0] for line in one._repr_html_().split(' id="')[1:]}
    assert ids.isdisjoint(again)
    curve = one.curve._repr_html_()
    assert curve.count("<tr>") == len(one.curve) + 1
    assert "search 2x (picked)" in curve
    spec = ConvSpec(HOSTILE, "conv2d", 3, 4, (3, 3), (1, 1), (1, 1), (1, 1), input_sizes=((5, 5),))
    plan = Plan((LayerPlan(spec, "cp", (2,), macs=7), LayerPlan(spec, skip_reason="why")), {})
    assert "<img" not in plan._repr_html_()
    assert "cp 2" in plan._repr_html_()
    result = Result(None, plan, one)  # type: ignore[arg-type]
    assert result._repr_html_().startswith("<p><b>")
    assert result.summary().splitlines()[0] == told[0] == shown(one)[0]


def test_the_curve_comes_back_from_the_file_as_one(tmp_path: Path) -> None:
    report().save(tmp_path / "report.json")
    assert isinstance(load_report(tmp_path / "report.json").curve, Curve)


@pytest.mark.parametrize("what", ["curve", "layers"])
def test_figures_are_matplotlibs_and_nobody_elses(what: str, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    figure = report().figure(what)
    assert isinstance(figure, Figure)
    assert figure.axes
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert figure.patch.get_visible()  # dark notebooks have no light paper


def test_what_is_no_figure_or_frame_is_told() -> None:
    with pytest.raises(DataError, match="must be curve or layers, got 'x'"):
        report().figure("x")
    with pytest.raises(DataError, match="curve has nothing to show"):
        report(curve=(), search=None, speed=()).figure()
    with pytest.raises(DataError, match="must be layers or curve, got 'x'"):
        report().to_frame("x")


def test_frames_are_of_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    frame = report().to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["name"]) == [one.name for one in report().layers]
    curve = report().to_frame("curve")
    assert list(curve["top1"]) == [one.quality["top1"] for one in report().curve]


def test_without_pandas_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(DataError, match="pip install pandas"):
        report().to_frame()


def test_the_library_logs_under_its_name() -> None:
    import logging

    import factorize

    assert factorize.__name__ == "factorize"
    own: Any = [name for name in logging.Logger.manager.loggerDict if name.startswith("factorize.")]
    assert own
    assert all(not logging.getLogger(name).handlers for name in own)


def test_the_page_has_every_section_in_order(tmp_path: Path) -> None:
    text, _ = page(report(), tmp_path, "factorize net.pt --speedup 2")
    order = ["verdict", 'id="curve"', 'id="next"', 'id="layers"', 'id="made"', 'id="glossary"']
    places = [text.index(one) for one in order]
    assert places == sorted(places)
    assert text.count("<details>") >= 4
    for term in ("MACs left", "top-1", "held-out"):
        assert f'<dfn tabindex="0">{term}<span class="tip" role="tooltip">' in text
