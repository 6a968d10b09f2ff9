"""The notebooks of the documentation run from top to end."""

from __future__ import annotations

from pathlib import Path

import notebook_pages  # of docs/
import pytest

TESTS = Path(__file__).parents[1]
FOLDER = TESTS.parent / "docs" / "notebooks"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["first_net", pytest.param("compare_methods", marks=pytest.mark.nightly)]
)
def test_notebook_runs(name: str, tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    for one in ("ipykernel", "pandas", "sklearn"):
        pytest.importorskip(one)
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells)  # kept small, and without results
    hurried = f"import sys; sys.path.append({str(TESTS)!r}); import hurrying; hurrying.hurry()"
    book.cells.insert(0, nbformat.v4.new_code_cell(hurried))
    nbclient.NotebookClient(
        book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [out for cell in book.cells for out in cell.get("outputs", ())]
    shown = [kind for out in outputs for kind in out.get("data", ())]
    assert {"text/html", "image/png"} <= set(shown)
    assert list(tmp_path.iterdir()) == []


def test_each_has_a_page_on_the_site() -> None:
    site = (TESTS.parent / "mkdocs.yml").read_text()
    pages = notebook_pages.pages()
    assert len(pages) == len([*FOLDER.iterdir()])
    for name, page in pages.items():
        assert f": {name}" in site
        assert page.startswith("# ")
        assert f"]({Path(name).stem}.ipynb)" in page
    link = "see [it](../notebooks/first_net.ipynb)"
    assert notebook_pages.linked(link) == "see [it](../notebooks/first_net.md)"
