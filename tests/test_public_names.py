"""The public names: what `factorize` shows is what it documents, and nothing else."""

import importlib.util
import re
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

import factorize

DOCS = Path(__file__).parents[1] / "docs"
PAGES = " ".join(page.read_text() for page in (DOCS / "how-to").glob("*.md"))
CODE = " ".join(re.findall(r"```.*?```|`[^`]+`", PAGES, re.DOTALL))  # "find" is also a word
every_name = pytest.mark.parametrize("name", factorize.__all__)


@every_name
def test_has_a_docstring_of_its_own(name: str) -> None:
    value = getattr(factorize, name)
    # A dataclass without one gets its signature; a class without one shows its base's in help().
    doc = vars(value).get("__doc__") if isinstance(value, type) else value.__doc__
    assert doc
    assert not doc.startswith(f"{name}(")


@every_name
def test_is_shown_in_a_how_to(name: str) -> None:
    assert re.search(rf"\b{name}\b", CODE)


@every_name
def test_shadows_no_module(name: str) -> None:
    """`factorize.plan` could be the function or the package, by the order of imports."""
    assert importlib.util.find_spec(f"factorize.{name}") is None


def test_nothing_else_is_public() -> None:
    shown = {name for name in dir(factorize) if not name.startswith("_")}
    modules = {name for name in shown if isinstance(getattr(factorize, name), ModuleType)}
    assert shown - modules == set(factorize.__all__)
    assert all(getattr(factorize, name).__name__ == f"factorize.{name}" for name in modules)


def test_names_are_sorted_and_once() -> None:
    assert list(factorize.__all__) == sorted(set(factorize.__all__))


def test_version_is_that_of_the_package() -> None:
    assert factorize.__version__ == version("factorize")
    with pytest.raises(AttributeError, match="no attribute 'versions'"):
        _ = factorize.versions  # type: ignore[attr-defined]
