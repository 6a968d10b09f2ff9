"""A page for each notebook: its cells without what they put out, which is not kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

NOTEBOOKS = Path(__file__).parent / "notebooks"


def pages() -> dict[str, str]:
    """By where they are on the site."""
    found = sorted(NOTEBOOKS.glob("*.ipynb"))
    return {f"notebooks/{path.stem}.md": page(path) for path in found}


def page(path: Path) -> str:
    """One notebook, in Markdown."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    parts.insert(1, f"Run it yourself: [{path.name}]({path.name}).")
    return "\n\n".join(parts) + "\n"


def linked(markdown: str) -> str:
    """Links to notebooks lead to their pages."""
    return re.sub(r"(\]\([./]*notebooks/\w+)\.ipynb\)", r"\1.md)", markdown)
