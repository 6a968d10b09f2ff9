"""The cache of timings: what is put is found, by other processes too, and where it lies."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from timings import CONTEXT, ENTRIES, assert_memory_serves, found

from factorize.measure import cache as cache_module
from factorize.measure.cache import NumberCache, default_cache_path

# Other processes load the file by itself: importing the whole package takes seconds.
WRITER = f"""
import sys
sys.path.insert(0, {str(Path(cache_module.__file__).parent)!r})
from cache import NumberCache
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
from pathlib import Path
print("ready", flush=True)
sys.stdin.readline()
with NumberCache(Path(path)) as cache:
    for i in range(count):
        cache.put({CONTEXT!r}, {{f"{{name}} {{i}}": {{"ms": float(i)}}}})
        assert not cache.notes, cache.notes
        print(i, flush=True)
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    return iter(process.stdout)


def start(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_entries_are_found_by_context_and_key(tmp_path: Path) -> None:
    path = tmp_path / "made" / "on the way" / "latency.sqlite"
    with NumberCache(path) as cache:
        assert cache.get(CONTEXT, ["a"]) == {}
        cache.put(CONTEXT, {"a": {"ms": 1.5}, "b": {"ms": 2}})
        cache.put(CONTEXT | {"threads": 4}, {"a": {"ms": 0.5}})
        cache.put(CONTEXT, {"a": {"ms": 1.25}})
    reordered = dict(reversed(CONTEXT.items()))
    with NumberCache(path) as again:
        assert again.get(reordered, ["a", "b", "c"]) == {"a": {"ms": 1.25}, "b": {"ms": 2.0}}
        assert again.get(CONTEXT | {"threads": 4}, iter(["a", "b", "a"])) == {"a": {"ms": 0.5}}
        assert again.get(CONTEXT | {"threads": 1}, ["a"]) == {}
    assert cache.notes == again.notes == []


def test_a_file_is_made_at_first_use_and_nothing_is_left_open(tmp_path: Path) -> None:
    path = tmp_path / "latency.sqlite"
    with NumberCache(path) as cache:
        assert list(tmp_path.iterdir()) == []
        cache.put(CONTEXT, {"a": {"ms": 1.0}})
    cache.put(CONTEXT, {"b": {"ms": 2.0}})  # opens it again
    cache.close()
    assert list(tmp_path.iterdir()) == [path]
    assert set(found(path, ["a", "b"])[0]) == {"a", "b"}


def test_what_a_caller_does_to_an_entry_stays_with_the_caller() -> None:
    cache = NumberCache(None)
    mine = {"ms": 1.0}
    cache.put(CONTEXT, {"a": mine})
    mine["ms"] = 9.0
    cache.get(CONTEXT, ["a"])["a"]["ms"] = 8.0
    assert cache.get(CONTEXT, ["a"]) == {"a": {"ms": 1.0}}
    assert cache.notes == []


@pytest.mark.parametrize("on_disk", [True, False])
def test_only_timings_are_kept(tmp_path: Path, on_disk: bool) -> None:
    path = tmp_path / "latency.sqlite" if on_disk else None
    bad = {"nan": float("nan"), "inf": float("inf"), "negative": -1e-9}
    with NumberCache(path) as cache:
        cache.put(CONTEXT, {key: {"ms": 1.0, "p90": value} for key, value in bad.items()})
        cache.put(CONTEXT, {"numpy": {"ms": np.float32(0.5)}, "refused": {}})
    with NumberCache(path) if on_disk else cache as later:
        kept = later.get(CONTEXT, [*bad, "numpy", "refused"])
    assert kept == {"numpy": {"ms": 0.5}, "refused": {}}


def test_another_process_makes_the_file_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "latency.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    other.execute(cache_module._TABLE)
    other.execute(f"PRAGMA user_version = {cache_module._VERSION}")
    timer = threading.Timer(0.2, other.execute, ["COMMIT"])
    timer.start()
    with NumberCache(path) as cache:
        cache.put(CONTEXT, ENTRIES)
    timer.join()
    other.close()
    assert cache.notes == []
    assert found(path) == (ENTRIES, [])


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "made by either" / "latency.sqlite"
    processes = [writer(path, name, 200) for name in "ab"]
    for process in processes:
        assert next(lines(process)) == "ready\n"
    for process in processes:
        start(process)
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    expected = {f"{name} {i}": {"ms": float(i)} for name in "ab" for i in range(200)}
    assert found(path, expected) == (expected, [])


def test_what_was_put_survives_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "latency.sqlite"
    process = writer(path, "a", 1_000_000)
    output = lines(process)
    assert next(output) == "ready\n"
    start(process)
    for _ in range(20):
        next(output)
    process.kill()
    put = 20 + sum(line.endswith("\n") for line in output)
    process.communicate()
    expected = {f"a {i}": {"ms": float(i)} for i in range(put)}
    assert found(path, expected) == (expected, [])
    with NumberCache(path) as cache:
        cache.put(CONTEXT, {"after": {"ms": 1.0}})
        assert cache.notes == []


def test_default_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FACTORIZE_CACHE", str(tmp_path))
    assert default_cache_path().parent == tmp_path
    monkeypatch.setenv("FACTORIZE_CACHE", "")
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / name)
    assert default_cache_path().parent == tmp_path / "factorize"
    monkeypatch.delenv("FACTORIZE_CACHE")
    assert default_cache_path().parent == tmp_path / "factorize"
    assert default_cache_path().suffix == ".sqlite"
    assert str(cache_module._VERSION) in default_cache_path().stem  # of releases side by side


def test_no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def homeless(*_: object) -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FACTORIZE_CACHE", raising=False)
    monkeypatch.setattr(platformdirs, "user_cache_path", homeless)
    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.chdir(tmp_path)
    assert "home directory" in assert_memory_serves(default_cache_path())
    assert list(tmp_path.iterdir()) == []


def test_tilde_is_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FACTORIZE_CACHE", "~/timings")
    with NumberCache(default_cache_path()) as cache:
        cache.put(CONTEXT, {"a": {"ms": 1.0}})
    assert (tmp_path / "timings" / default_cache_path().name).is_file()
