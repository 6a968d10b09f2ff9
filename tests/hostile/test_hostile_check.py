"""The check itself: it sees each kind of misbehaviour, here of a function that the command runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusing import MARKER, RUN, Arguments, Case, check_refused, run, save_net


def case(code: str) -> Case:
    def build(folder: Path) -> Arguments:
        lines = "".join(f"    {line}\n" for line in (*code.splitlines(), "raise OSError('gone')"))
        (folder / "d.py").write_text(f"import os, sys\ndef data():\n{lines}")
        return (save_net(folder), *RUN, "--data", "d.py:data")

    return Case("", build, ("d.py:data: the function failed: OSError: gone",))


def test_a_refusal_is_one(tmp_path: Path) -> None:
    check_refused(case(""), tmp_path)


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        ("os._exit(0)", "exit code 0"),
        ("os._exit(1)", "exit code 1"),
        ("os.abort()", "exit code -6"),
        ("while True: pass", "exit code (-9|None)"),
        (f"open('../{MARKER}', 'w')", "it ran"),
        ("print('done')", "done"),
        ("print('warning', file=sys.stderr)", "warning"),
        ("print('error: 1', file=sys.stderr)", "more than a line"),
        ("raise OSError('another')", "another"),
        ("open('left', 'w')", "left"),
        ("open(f\"{os.environ['TMPDIR']}/left\", 'w')", "left"),
        ("open('net.pt', 'ab').write(b'more')", "net.pt"),
        ("os.remove('net.pt')", "net.pt"),
        ("bytes(1 << 31)", "MemoryError"),
    ],
)
def test_misbehaviour_is_seen(
    code: str, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr("refusing.SECONDS", 3)
    with pytest.raises(AssertionError, match=seen):
        check_refused(case(code), tmp_path)


def test_a_program_that_waits_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refusing.SECONDS", 1)
    for folder in ("work", "scratch"):
        (tmp_path / folder).mkdir()
    assert run(case("import time; time.sleep(60)").build(tmp_path / "work"), tmp_path).code is None
