"""One check for every hostile input: the command says no in one line, and leaves no trace.

Each command runs in a process of its own, forked off one that has imported torch already, with a
limit on the memory it may take on top and on its processor time.
"""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import forking
import pytest
import torch
from torch import nn

from factorize.report.progress import AT_ONCE

MEMORY = 1 << 30  # bytes on top of what the imports take
_FIRST = ("images: ", "input: ", "original: ")
_PROGRESS = re.compile(rf"[a-z][\w -]* (\d+/\d+)?  |({'|'.join(AT_ONCE)})$")
SECONDS = 120  # of processor time: whole runs take half of that on a slow machine
LONGEST = 1000  # characters that a person may be asked to read

MARKER = "it-ran"  # the file that crafted programs make
_OWN = ("stdout", "stderr", "cache")  # what a run may write beside its folder

Arguments = tuple[object, ...]


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes
    ----------
    build
        Makes the files in an empty folder, and returns the command's arguments.
    says
        What the line must say: the place, and what is wrong with it.
    """

    name: str
    build: Callable[[Path], Arguments]
    says: tuple[str, ...]


class Corpus(list[Case]):
    """Cases of one theme, each added by a decorated function."""

    def add(self, name: str, build: Callable[[Path], Arguments], *says: str) -> None:
        self.append(Case(name, build, says))

    def case(self, *says: str) -> Callable[[Callable[[Path], Arguments]], None]:
        def add(build: Callable[[Path], Arguments]) -> None:
            self.add(build.__name__.replace("_", " "), build, *says)

        return add

    def parametrize(self) -> pytest.MarkDecorator:
        return pytest.mark.parametrize("case", self, ids=[case.name for case in self])


@dataclass(frozen=True)
class Ran:
    code: int | None  # None: it did not end
    out: str
    err: str


def check_refused(case: Case, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    arguments = case.build(work)
    (tmp_path / "scratch").mkdir()
    before = contents(tmp_path)
    ran = run(arguments, tmp_path)
    shown = f"{ran.out}{ran.err}"[-3000:]
    assert not (tmp_path / MARKER).exists(), f"it ran what the file said: {shown}"
    assert ran.code == 2, f"exit code {ran.code}: {shown}"
    assert ran.out == "", shown
    said = error_of(ran)
    assert said.startswith("error: "), shown
    assert said.endswith("\n"), shown
    line = said[:-1]
    assert line.isprintable(), f"more than a line of text: {line[:3000]!r}"
    assert len(line) <= LONGEST, f"{len(line)} characters"
    for part in case.says:
        assert part in line, shown
    after = contents(tmp_path)
    changed = sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))
    assert not changed, f"not as before: {changed}"


def error_of(ran: Ran) -> str:
    """All that was said but for what went in, what the original scored on it, and progress.

    Steps that take long have a line of progress.
    """
    lines = ran.err.splitlines(keepends=True)
    while lines and (lines[0].startswith(_FIRST) or _PROGRESS.match(lines[0])):
        lines.pop(0)
    return "".join(lines)


def contents(folder: Path) -> dict[str, tuple[object, ...]]:
    """Every file, folder and link of a run, as it is."""
    return {str(path.relative_to(folder)): _state(path) for path in _walk(folder)}


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):  # links are not followed
        if Path(root) == folder:
            folders[:] = [name for name in folders if name not in _OWN]
            files = [name for name in files if name not in _OWN]
        yield from (Path(root, name) for name in (*folders, *files))


def _state(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    if path.is_symlink():
        return ("link", str(path.readlink()))
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(1 << 22)
        return ("file", status.st_mode, status.st_size, status.st_mtime_ns, sha256(head).digest())
    return ("folder" if path.is_dir() else "other", status.st_mode)


def run(arguments: Arguments, tmp_path: Path, *, hurried: bool = False, **limits: int) -> Ran:
    """Run the command in ``work``; all that it may write elsewhere lies beside that."""
    out, err, scratch = (tmp_path / name for name in ("stdout", "stderr", "scratch"))
    environment = {
        "TMPDIR": scratch, "HOME": scratch, "FACTORIZE_CACHE": tmp_path / "cache",
        "MPLCONFIGDIR": tmp_path / "cache", "COLUMNS": 100,
    }  # fmt: skip
    process = forking.started(
        _command, list(map(str, arguments)), str(tmp_path / "work"), str(out), str(err),
        {name: str(value) for name, value in environment.items()},
        {"memory": MEMORY, "seconds": SECONDS, **limits}, hurried,
    )  # fmt: skip
    try:
        process.join(3 * SECONDS)  # of the wall clock: it may wait for something
        code = process.exitcode
    finally:
        process.kill()
        process.join()
    return Ran(code, out.read_text(errors="replace"), err.read_text(errors="replace"))


def _command(
    arguments: list[str], folder: str, out: str, err: str, environment: Mapping[str, str],
    limits: Mapping[str, int], hurried: bool,
) -> None:  # fmt: skip
    for target, name in ((1, out), (2, err)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), target)
    os.environ.update(environment)
    os.chdir(folder)
    import tempfile

    tempfile.tempdir = None  # read TMPDIR anew
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + limits["memory"],) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (limits["seconds"],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if "file" in limits:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file"],) * 2)
    sys.dont_write_bytecode = True  # beside a user's own module
    sys.argv = ["factorize", *arguments]
    if hurried:
        forking.hurry_here()
    from factorize.cli.command import main

    main()


def _address_space() -> int:
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A small file system on a folder; skips the test where the system does not allow that."""
    import subprocess

    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"cannot mount a small file system here: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
    )  # fmt: skip


def save_net(folder: Path) -> str:
    torch.save(small_net(), folder / "net.pt")
    return "net.pt"


RUN = ("--rank", "4", "--input-shape", "3,16,16")
