"""The notebooks of the documentation run from top to end."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"


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
    nbclient.NotebookClient(
        book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [out for cell in book.cells for out in cell.get("outputs", ())]
    shown = [kind for out in outputs for kind in out.get("data", ())]
    assert {"text/html", "image/png"} <= set(shown)
    assert list(tmp_path.iterdir()) == []
