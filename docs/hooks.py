"""What MkDocs cannot know: the README as the first page, methods, options, notebooks, experiments.

A method or an option that is registered tomorrow, and a new folder of experiments/, are on the site
without a change here.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent))  # MkDocs runs this file, and imports no folder
sys.path.insert(0, str(ROOT))

import method_pages  # noqa: E402
import notebook_pages  # noqa: E402
import reference_pages  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402

EXPERIMENTS = sorted((ROOT / "experiments").rglob("README.md"))
SHOWN_WITH = (".md", ".svg")  # what experiments' pages show or link to
BESIDE_README = ("CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff")


def on_config(config: Any) -> Any:
    """Put generated pages into the navigation."""
    for section in config.nav:
        for title, pages in section.items():
            if title == "Methods":
                pages += [{name: f"methods/{name}.md"} for name in method_pages.names()]
            if title == "Measured":
                pages += [{name_of(path): in_site(path)} for path in EXPERIMENTS]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add what is written nowhere else in docs/."""
    readme = (ROOT / "README.md").read_text()
    made = {"index.md": re.sub(r"\]\((docs/)", "](", readme)}
    made |= reference_pages.pages() | notebook_pages.pages()
    made |= {f"methods/{name}.md": method_pages.page(name) for name in method_pages.names()}
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    as_they_are = [ROOT / name for name in BESIDE_README]
    as_they_are += [p for p in (ROOT / "experiments").rglob("*") if p.suffix in SHOWN_WITH]
    for path in as_they_are:
        files.append(File.generated(config, in_site(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that hold in the repository hold on the site; public names by their definitions."""
    here = posixpath.dirname(page.file.src_uri)
    outside = "../" * (here.count("/") + bool(here) + 1)  # to the repository, from docs/
    start = "experiments/" if page.file.src_uri == "index.md" else f"{outside}experiments/"
    to = posixpath.relpath("experiments", here or ".") + "/"
    markdown = markdown.replace(f"]({start}", f"]({to}")
    if page.file.src_uri == "methods/index.md":
        markdown = method_pages.linked(markdown)
    return reference_pages.resolved(notebook_pages.linked(markdown))


def name_of(path: Path) -> str:
    """Of an experiment: its folder."""
    return path.parent.relative_to(ROOT / "experiments").as_posix()


def in_site(path: Path) -> str:
    """Where a file of experiments/ is on the site."""
    return path.relative_to(ROOT).as_posix()
