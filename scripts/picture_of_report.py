"""Take the README's picture of a report anew: docs/images/report.png.

    python scripts/picture_of_report.py experiments/speed/resnet20-max-drop/report.json

writes the page of that report as today's code shows it, and needs chromium.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from factorize.report.html import write_html
from factorize.report.load import load_report

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "report.png"
CHROMIUM = (
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--window-size=1100,1000",
)  # fmt: skip


def main() -> None:
    """Of the report that is named."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "report.html")
        write_html(load_report(Path(sys.argv[1])), page)
        profile = f"--user-data-dir={folder}/profile"
        picture = f"--screenshot={PICTURE}"
        subprocess.run([*CHROMIUM, profile, picture, page.as_uri()], check=True)


if __name__ == "__main__":
    main()
