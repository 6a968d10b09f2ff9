"""Take every model of torchvision, and one of each family of timm, through all of the library.

    PYTHONPATH=. OMP_NUM_THREADS=1 python scripts/zoo.py [--suite timm] [--only 'resnet*'] [--redo]

Each is loaded from its state dict, walked, rewritten at full rank and compared, rewritten at
quarter rank, run, trained for a step, saved, loaded and exported to ONNX (`zoo_check.py`), in a
process of its own with limits on time and memory. A row is added to experiments/zoo/results.json
when its model is done; what is there already is not run again. Exits 1 where a model failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Lock
from typing import Any

from zoo_models import Entry, entries

RESULTS = Path(__file__).parents[1] / "experiments" / "zoo" / "results.json"
SUITES = ("torchvision", "timm")
CHECK = Path(__file__).with_name("zoo_check.py")

Row = dict[str, Any]


def main() -> None:
    """Read the arguments, run the models that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=SUITES, action="append", help="default: both")
    parser.add_argument("--only", default="*", help="a glob on names")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--redo", action="store_true", help="run again what is there already")
    parser.add_argument("--minutes", type=float, default=10, help="the most for one model")
    parser.add_argument("--memory", type=float, default=20, help="GB, for all jobs together")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()

    wanted = [
        entry
        for suite in options.suite or SUITES
        for entry in entries(suite)
        if fnmatchcase(entry.name, options.only)
    ]
    rows = read(options.out)
    if not options.redo:
        wanted = [one for one in wanted if (one.suite, one.name) not in rows]
    lock, start = Lock(), time.perf_counter()

    def run(entry: Entry) -> None:
        row = checked(entry, 60 * options.minutes, options.memory / options.jobs)
        with lock:
            rows[entry.suite, entry.name] = row
            write(options.out, rows)
            print(f"{time.perf_counter() - start:6.0f} s  {told(row)}", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(run, wanted))
    sys.exit(any(rows[one.suite, one.name]["failures"] for one in wanted))


def checked(entry: Entry, seconds: float, gigabytes: float) -> Row:
    """The row of one model, checked in a process of its own that keeps to the limits."""
    with tempfile.TemporaryDirectory(prefix="zoo-row-") as folder:
        path, log = Path(folder, "row.json"), Path(folder, "log")
        start, ended = time.perf_counter(), ""
        with log.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, str(CHECK), entry.suite, entry.name, str(path)],
                stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": folder},
            )  # fmt: skip
            while process.poll() is None:
                if time.perf_counter() - start > seconds:
                    ended = f"not done after {seconds:g} s"
                elif _resident(process.pid) > gigabytes:
                    ended = f"more than {gigabytes:g} GB of memory"
                if ended:
                    process.kill()
                    process.wait()
                time.sleep(0.2)
        row: Row = {"suite": entry.suite, "model": entry.name, "family": entry.family}
        row |= json.loads(path.read_text()) if path.exists() else {"failures": {}}
        if process.returncode and not ended:
            lines = log.read_text().strip().splitlines()
            ended = f"exit code {process.returncode}: {lines[-1] if lines else ''}"[:300]
        if ended:
            row["failures"][row.pop("at", "start")] = ended
        row["total_seconds"] = round(time.perf_counter() - start, 1)
    return row


def _resident(pid: int) -> float:
    """GB of memory that a process holds; 0 once it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def told(row: Row) -> str:
    """A row as a line."""
    failures = "; ".join(f"{stage}: {cause}" for stage, cause in row["failures"].items())
    found, full = sum(row.get("found", {}).values()), row.get("full", {})
    done = sum(full.get("methods", {}).values())
    return (
        f"{row['suite']:11} {row['model']:34} {done:3}/{found:3} layers  "
        f"full rank {full.get('float32', float('nan')):.1e}  "
        f"{row.get('peak_gb', 0):4.1f} GB {row['total_seconds']:6.1f} s  "
        f"{failures or row.get('refused') or 'passed'}"
    )


def read(path: Path) -> dict[tuple[str, str], Row]:
    """Rows by suite and model."""
    rows = json.loads(path.read_text()) if path.exists() else []
    return {(row["suite"], row["model"]): row for row in rows}


def write(path: Path, rows: dict[tuple[str, str], Row]) -> None:
    """One row a line, in the order of names; whole or not at all."""
    order = sorted(rows, key=lambda key: (SUITES.index(key[0]), key[1]))
    temporary = path.with_suffix(".part")
    temporary.write_text("[\n" + ",\n".join(json.dumps(rows[key]) for key in order) + "\n]\n")
    temporary.replace(path)


if __name__ == "__main__":
    main()
