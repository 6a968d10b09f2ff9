"""Take the README's picture of a report anew: docs/images/report.png.

    python scripts/picture_of_report.py docs/images/report.json

writes the page of that report as the code shows it, and needs chromium. That report is of

    factorize digits --macs 0.7,0.5,0.4,0.3 --pick 0.5 --finetune 0
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
    "--hide-scrollbars", "--window-size=1100,900",
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
