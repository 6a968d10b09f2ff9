"""Break the package in one place at a time and see which test fails.

    python scripts/mutate.py [--only PART] [--redo]

Each mutation of `mutations.py` is made in a copy of the package, and the tests are run against it
until one fails, those that know the file first. That test must pass on the package as it is. Rows
go to experiments/mutations/results.json, where a mutation that is unchanged and was killed is kept
unless --redo; the tables go to the README.md beside. Exits 1 where a mutation survives.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import textwrap
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import onnxruntime  # noqa: F401  loaded once, for all runs of the tests: they are forks of this one
import pytest
import torchvision  # noqa: F401
from mutations import MUTATIONS

HERE = Path(__file__).parents[1]
RESULTS = HERE / "experiments" / "mutations" / "results.json"
MARK = "<!-- made by scripts/mutate.py: do not edit below -->\n"
LONGEST = 900  # seconds of a run of the tests

TESTS = (
    "graph/test_graph", "graph/test_graph_refused", "graph/test_merge", "methods/test_methods",
    "calibrate/test_calibrate", "calibrate/test_calibrate_collect",
    "calibrate/test_calibration_file", "measure/test_measure", "measure/test_quality",
    "measure/test_pairs", "plan/test_plan", "plan/test_plan_file", "plan/test_lossless",
    "export/test_export", "export/test_onnx_nodes", "fit/test_fit", "fit/test_fit_models",
    "fit/test_fit_passes",
)  # fmt: skip
FIRST = {
    "calibrate/patches.py": ("calibrate/test_calibrate",),
    "export/onnx_nodes.py": ("export/test_onnx_nodes", "export/test_export"),
    "fit/sequential.py": ("fit/test_fit",),
}
"""Tests that know a file; of others, the first four of all."""

Row = dict[str, Any]
KEY = ("attribute", "file", "place", "text", "becomes")


def main() -> int:
    """Run what is not known yet, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of a file's name or of an attribute")
    parser.add_argument("--redo", action="store_true", help="run what is known, too")
    options = parser.parse_args()
    known: list[Row] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    rows: list[Row] = [
        dict(zip(KEY, (attribute, file, *rest), strict=True))
        for file, mutations in MUTATIONS.items()
        for attribute, *rest in mutations
    ]
    for row in rows:
        found = (HERE / "factorize" / row["file"]).read_text().count(row["text"])
        if found != 1:
            sys.exit(f"{row['file']}: {row['text']!r} must be there once, is {found} times.")
        row.update(next((old for old in known if all(old[k] == row[k] for k in KEY)), {}))

    with tempfile.TemporaryDirectory() as directory:
        tests = Tests(Path(directory))
        for number, row in enumerate(rows, 1):
            wanted = options.only in row["file"] or options.only in row["attribute"]
            if wanted and (options.redo or not row.get("killed_by")):
                start = time.perf_counter()
                row["killed_by"] = tests.killer(row)
                row["seconds"] = round(time.perf_counter() - start, 1)
                what = ", ".join(row[key] for key in KEY[:3])
                print(f"{number}/{len(rows)} {what}: {row['killed_by'] or 'SURVIVED'}", flush=True)
                ran = [one for one in rows if "seconds" in one]
                RESULTS.write_text(json.dumps(ran, indent=1) + "\n")
                write_tables(ran)
    ran = [row for row in rows if "seconds" in row]
    write_tables(ran)
    return int(any(row["killed_by"] is None for row in ran))


class Tests:
    """The tests, run on a copy of the package in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("factorize", "tests", "scripts"):
            shutil.copytree(HERE / name, folder / name)
        shutil.copy(HERE / "pyproject.toml", folder)
        self.sound: set[str] = set()

    def killer(self, row: Row) -> str | None:
        """The first test that fails when a mutation is made, None where all pass."""
        path = self.folder / "factorize" / row["file"]
        original = path.read_text()
        first = FIRST.get(row["file"], TESTS[:4])
        path.write_text(original.replace(row["text"], row["becomes"]))
        try:
            failed = self._failed(first) or self._failed([t for t in TESTS if t not in first])
        finally:
            path.write_text(original)
        if failed and failed not in self.sound:
            if self._failed([failed]):
                raise SystemExit(f"{failed}: must pass on the package as it is, and fails.")
            self.sound.add(failed)
        return failed

    def _failed(self, tests: Any) -> str | None:
        """The first test that fails, in a process of its own: the package is imported anew."""
        paths = [t if "::" in t or ".py" in t else f"tests/{t}.py" for t in tests]
        fork = multiprocessing.get_context("fork")
        receive, send = fork.Pipe(duplex=False)
        process = fork.Process(target=_run, args=(self.folder, paths, send))
        process.start()
        send.close()  # a process that dies is the end of the pipe
        try:
            code, failed = receive.recv() if receive.poll(LONGEST) else (None, "no end")
        finally:
            process.terminate()
            process.join()
        if code not in (0, None) and not failed:
            raise SystemExit(f"pytest {' '.join(paths)}: exit code {code} without a failed test.")
        return failed


def _run(folder: Path, paths: list[str], send: Connection) -> None:
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True  # a mutation may be as old and long as the text it replaces
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    watch = Watch()
    code = pytest.main(["-x", "-q", "--tb=no", "-p", "no:cacheprovider", *paths], [watch])
    send.send((int(code), watch.failed))


class Watch:
    """Notes what fails first; makes hypothesis report that without a search for the least case."""

    failed: str | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """After conftest.py has chosen the profile, before the tests are imported."""
        import hypothesis  # here: pytest itself is to import its plugins first

        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        ci = hypothesis.settings.get_profile("ci")
        hypothesis.settings.register_profile("mutation", parent=ci, phases=phases)
        hypothesis.settings.load_profile("mutation")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of one test."""
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported."""
        if report.failed and self.failed is None:
            self.failed = report.nodeid


def write_tables(rows: list[Row]) -> None:
    """Replace all of the README below the mark."""
    survived = sum(row["killed_by"] is None for row in rows)
    parts = [f"{len(rows)} mutations, {len(rows) - survived} killed, {survived} survived.\n"]
    attributes: dict[str, list[Row]] = {}
    for row in rows:
        attributes.setdefault(row["attribute"], []).append(row)
    lines = [
        [name, str(len(own)), str(sum(row["killed_by"] is not None for row in own)),
         ", ".join(dict.fromkeys(row["file"] for row in own))]
        for name, own in sorted(attributes.items())
    ]  # fmt: skip
    parts.append(_table(["attribute", "mutations", "killed", "in"], lines))
    for file in dict.fromkeys(row["file"] for row in rows):
        lines = [
            [row["attribute"], row["place"], f"{_code(row['text'])} → {_code(row['becomes'])}",
             _code(row["killed_by"].replace("tests/", "")) if row["killed_by"] else "**SURVIVED**",
             f"{row['seconds']:.0f}"]
            for row in rows if row["file"] == file
        ]  # fmt: skip
        head = ["attribute", "where", "change", "killed by", "s"]
        parts.append(f"## factorize/{file}\n\n" + _table(head, lines))
    readme = RESULTS.with_name("README.md")
    readme.write_text(readme.read_text().partition(MARK)[0] + MARK + "\n" + "\n".join(parts))


def _table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _code(text: str) -> str:
    shown = textwrap.shorten(text, 90, placeholder=" ...").replace("|", "\\|")
    return f"`{shown}`" if shown else "nothing"


if __name__ == "__main__":
    sys.exit(main())
