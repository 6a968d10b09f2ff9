"""Stop a run at each of some twenty moments, go on, and compare with an undisturbed run.

``python scripts/interrupt.py [--every]`` prints a table: the signals in turn, or all of them.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "run"))

import interrupting
from interrupting import ARGUMENTS, MOMENTS, SIGNALS


def _case(folder: Path, moment: interrupting.Moment, number: int, whole: dict) -> list[str]:
    """One row: exit code, what was there then, how it went on, what differs."""
    interrupting.prepare(folder / "run")
    stopped = interrupting.fork(folder / "run", *ARGUMENTS, moment=moment, number=number)
    out = folder / "run" / "out"
    there = sorted(path.name for path in out.iterdir()) if out.exists() else []
    wrong = interrupting.carried_on(folder / "run", stopped, number, whole)
    names = ", ".join(name.replace("model.", "m.") for name in there) or "nothing"
    said = stopped.err.strip() or "-"
    name = signal.Signals(number).name
    return [name, str(stopped.code), names, "; ".join(wrong) or "equal", said]


def main() -> None:
    """Print the table; exit code 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", action="store_true", help="every signal at every moment")
    every = parser.parse_args().every
    lost = 0
    with tempfile.TemporaryDirectory() as scratch:
        interrupting.prepare(Path(scratch, "whole", "run"))
        undisturbed = interrupting.fork(Path(scratch, "whole", "run"), *ARGUMENTS)
        assert undisturbed.code == 0, undisturbed.err
        whole = interrupting.result(Path(scratch, "whole", "run", "out"))
        print("| moment | signal | exit code | in the folder then | after going on | said |")
        print("|---|---|---|---|---|---|")
        for index, moment in enumerate(MOMENTS):
            for number in SIGNALS if every else [SIGNALS[index % 3]]:
                folder = Path(scratch, f"{index}-{number}")
                row = _case(folder, moment, number, whole)
                lost += row[3] != "equal"
                print("|", " | ".join([moment.name, *row]), "|", flush=True)
    print(f"\n{lost} lost")
    sys.exit(lost > 0)


if __name__ == "__main__":
    main()
