"""Each method has a page on the site, made of what its file says; so has one of somebody else."""

from __future__ import annotations

import runpy
from pathlib import Path

import method_pages  # of docs/
import pytest

from factorize import methods

COPYING = Path(__file__).parent / "plugins" / "copying.py"


@pytest.mark.parametrize("name", methods.names())
def test_a_page_has_formula_chain_and_where_it_wins(name: str) -> None:
    page = method_pages.page(name)
    assert page.startswith(f"# {name}\n")
    assert '<p class="formula"><i>W</i><sub>' in page
    assert page.count("<svg") == page.count("</svg>") == 1
    assert "[" not in page[: page.index("<svg")]  # all indices are where they belong
    for field in ("Chain", "Rank", "MACs", "Parameters", "Wins", "Limits", "Source"):
        assert f"| **{field}** | " in page


def test_a_stage_of_the_drawing_is_a_stage_of_the_chain() -> None:
    page = method_pages.page("cp")
    assert page.count('class="stage"') == 3
    assert ">depthwise<" in page


def test_a_method_of_somebody_else_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods.base, "_registry", dict(methods.base._registry))
    runpy.run_path(str(COPYING), run_name="copying")
    assert "copying" in method_pages.names()
    index = (COPYING.parents[2] / "docs" / "methods" / "index.md").read_text()
    linked = method_pages.linked(index)
    for name in method_pages.names():
        assert linked.count(f"| [`{name}`]({name}.md) |") == 1


def test_lines_that_are_indented_go_on() -> None:
    title, fields = method_pages.head_of("One.\n\nRank         R in\n             1..2\nMACs   R\n")
    assert title == "One."
    assert fields == {"Rank": ["R in", "1..2"], "MACs": ["R"]}
