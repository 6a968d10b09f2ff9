"""The cache of timings: what is put is found, and nothing wrong with the file raises or lies."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import platformdirs
import pytest

from factorize.measure import cache as cache_module
from factorize.measure.cache import LatencyCache, default_cache_path

CONTEXT = {"runtime": "onnxruntime", "threads": 2, "batch": 1, "versions": {"torch": "2.6"}}
ENTRIES = {f"chain {i}": {"median_ms": 0.1 + i, "dense_ms": 2.0 * i} for i in range(100)}

# Other processes load the file by itself: importing the whole package takes seconds.
WRITER = f"""
import sys
sys.path.insert(0, {str(Path(cache_module.__file__).parent)!r})
from cache import LatencyCache
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
from pathlib import Path
print("ready", flush=True)
sys.stdin.readline()
with LatencyCache(Path(path)) as cache:
    for i in range(count):
        cache.put({CONTEXT!r}, {{f"{{name}} {{i}}": {{"ms": float(i)}}}})
        assert not cache.notes, cache.notes
        print(i, flush=True)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of `ENTRIES`, written once; tests damage copies of it."""
    path = tmp_path_factory.mktemp("whole") / "latency.sqlite"
    with LatencyCache(path) as cache:
        cache.put(CONTEXT, ENTRIES)
    return path


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path / "latency.sqlite"))


def found(path: Path, keys: object = ENTRIES) -> tuple[dict[str, dict[str, float]], list[str]]:
    with LatencyCache(path) as cache:
        return cache.get(CONTEXT, keys), cache.notes  # type: ignore[arg-type]


def assert_memory_serves(path: Path) -> str:
    """Use a cache whose file cannot be used: one note in one line, and memory instead."""
    with LatencyCache(path) as cache:
        assert cache.get(CONTEXT, ENTRIES) == {}
        cache.put(CONTEXT, {"new": {"ms": 1.0}})
        assert cache.get(CONTEXT, ["new", "other"]) == {"new": {"ms": 1.0}}
    [note] = cache.notes
    assert note.startswith(f"{path}: ")
    assert "Delete it, or set FACTORIZE_CACHE" in note
    assert note.isprintable()
    return note


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
    with LatencyCache(path) as cache:
        assert cache.get(CONTEXT, ["a"]) == {}
        cache.put(CONTEXT, {"a": {"ms": 1.5}, "b": {"ms": 2}})
        cache.put(CONTEXT | {"threads": 4}, {"a": {"ms": 0.5}})
        cache.put(CONTEXT, {"a": {"ms": 1.25}})
    reordered = dict(reversed(CONTEXT.items()))
    with LatencyCache(path) as again:
        assert again.get(reordered, ["a", "b", "c"]) == {"a": {"ms": 1.25}, "b": {"ms": 2.0}}
        assert again.get(CONTEXT | {"threads": 4}, iter(["a", "b", "a"])) == {"a": {"ms": 0.5}}
        assert again.get(CONTEXT | {"threads": 1}, ["a"]) == {}
    assert cache.notes == again.notes == []


def test_a_file_is_made_at_first_use_and_nothing_is_left_open(tmp_path: Path) -> None:
    path = tmp_path / "latency.sqlite"
    with LatencyCache(path) as cache:
        assert list(tmp_path.iterdir()) == []
        cache.put(CONTEXT, {"a": {"ms": 1.0}})
    cache.put(CONTEXT, {"b": {"ms": 2.0}})  # opens it again
    cache.close()
    assert list(tmp_path.iterdir()) == [path]
    assert set(found(path, ["a", "b"])[0]) == {"a", "b"}


def test_what_a_caller_does_to_an_entry_stays_with_the_caller() -> None:
    cache = LatencyCache(None)
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
    with LatencyCache(path) as cache:
        cache.put(CONTEXT, {key: {"ms": 1.0, "p90": value} for key, value in bad.items()})
        cache.put(CONTEXT, {"numpy": {"ms": np.float32(0.5)}, "refused": {}})
    with LatencyCache(path) if on_disk else cache as later:
        kept = later.get(CONTEXT, [*bad, "numpy", "refused"])
    assert kept == {"numpy": {"ms": 0.5}, "refused": {}}


@pytest.mark.parametrize(
    "entry",
    [
        '{"median_ms": 0.001, "dense_ms": 0}',  # a plausible lie
        '{"median_ms": NaN}', '{"median_ms": 1e999}', '{"median_ms": -1}', '{"median_ms": "1"}',
        '{"median_ms": null}', "[1]", "1", "{", "", None, 7, b"\xff\xfe", "[" * 100_000,
    ],
)  # fmt: skip
def test_an_entry_edited_by_hand_is_as_if_not_there(path: Path, entry: object) -> None:
    database = sqlite3.connect(path)
    with database:
        database.execute("UPDATE timings SET entry = ? WHERE key = 'chain 7'", (entry,))
    database.close()
    others = {key: value for key, value in ENTRIES.items() if key != "chain 7"}
    assert found(path) == (others, [])


def test_an_entry_moved_to_another_key_is_as_if_not_there(path: Path) -> None:
    database = sqlite3.connect(path)
    with database:
        database.execute("UPDATE timings SET key = 'chain of another' WHERE key = 'chain 7'")
    database.close()
    assert found(path, ["chain of another"]) == ({}, [])


@pytest.mark.parametrize("length", [1, 15, 16, 99, 100, 512, 4095, 4096, 5000, 8192, -4096, -1])
def test_truncated_file(path: Path, length: int) -> None:
    content = path.read_bytes()[:length]
    path.write_bytes(content)
    entries, notes = found(path)
    assert entries.items() < ENTRIES.items()
    assert entries == {} or length == -1  # one byte less is one entry less
    assert path.read_bytes() == content or len(content) < 512  # SQLite's smallest page
    if notes:
        assert_memory_serves(path)


@pytest.mark.parametrize(
    "content", [b"not a database", b"\0" * 8192, b"\xff" * 5000, b"SQLite format 3\0" * 999]
)
def test_garbage(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "cache of timings was ignored" in assert_memory_serves(path)
    assert path.read_bytes() == content


def test_an_empty_file_is_a_new_cache(path: Path) -> None:
    path.write_bytes(b"")
    with LatencyCache(path) as cache:
        cache.put(CONTEXT, ENTRIES)
    assert found(path) == (ENTRIES, [])


def test_flipped_bits_lose_entries_but_change_none(path: Path) -> None:
    content = path.read_bytes()
    generator = random.Random(0)
    lost = 0
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(generator.choice((1, 10, 200))):
            damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with LatencyCache(path) as cache:
            entries = cache.get(CONTEXT, ENTRIES)
            assert entries.items() <= ENTRIES.items()
            cache.put(CONTEXT, {"new": {"ms": 1.0}})
            assert cache.get(CONTEXT, ["new"]) == {"new": {"ms": 1.0}}
        assert all(note.isprintable() for note in cache.notes)
        lost += len(entries) < len(ENTRIES)
        Path(f"{path}-journal").unlink(missing_ok=True)
    assert lost > 100  # the flips did reach what is read


@pytest.mark.parametrize("version", [cache_module._VERSION + 1, 0, -1])
def test_file_of_another_version_is_left_alone(path: Path, version: int) -> None:
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version = {version}")
    database.close()
    content = path.read_bytes()
    assert f"version is {version}, not {cache_module._VERSION}" in assert_memory_serves(path)
    assert path.read_bytes() == content


def test_file_with_another_table_is_left_alone(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("ALTER TABLE timings RENAME TO times")
    database.close()
    content = path.read_bytes()
    assert "no such table" in assert_memory_serves(path)
    assert path.read_bytes() == content


def test_read_only_file_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(  # permissions do not bind root
        sqlite3, "connect", lambda p, **more: connect(f"file:{p}?mode=ro", uri=True, **more)
    )
    content = path.read_bytes()
    with LatencyCache(path) as cache:
        assert cache.get(CONTEXT, ["chain 1"]) == {"chain 1": ENTRIES["chain 1"]}
        for i in range(3):
            cache.put(CONTEXT, {f"new {i}": {"ms": 1.0}})
        cache.put(CONTEXT, {"chain 3": {"ms": 3.5}})  # what was measured now is what counts
        assert cache.get(CONTEXT, ["new 0", "chain 2", "chain 3"]) == {
            "new 0": {"ms": 1.0},
            "chain 2": ENTRIES["chain 2"],
            "chain 3": {"ms": 3.5},
        }
    [note] = cache.notes
    assert "not kept for later runs (attempt to write a readonly database)" in note
    assert path.read_bytes() == content


def test_file_without_permissions(path: Path) -> None:
    path.chmod(0)
    try:
        path.open("rb").close()
    except PermissionError:
        assert_memory_serves(path)
    else:
        pytest.skip("permissions do not bind this user")
    finally:
        path.chmod(0o600)


def test_places_where_no_file_can_be(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    places = [folder, path / "latency.sqlite", path / "deeper" / "latency.sqlite"]
    if sys.platform == "linux":
        places += [Path("/proc/latency.sqlite"), Path("/proc/none/latency.sqlite")]
    for place in places:
        assert_memory_serves(place)
    assert list(folder.iterdir()) == []


def test_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    def full(*args: object, **more: object) -> sqlite3.Connection:
        database = connect(*args, **more)  # type: ignore[arg-type]
        database.execute("PRAGMA max_page_count = 1")
        return database

    monkeypatch.setattr(sqlite3, "connect", full)
    many = {f"new {i}": {"ms": float(i)} for i in range(1000)}
    with LatencyCache(path) as cache:
        cache.put(CONTEXT, many)
        assert cache.get(CONTEXT, [*many, *ENTRIES]) == many | ENTRIES
    [note] = cache.notes
    assert "disk is full" in note
    monkeypatch.undo()
    assert found(path, [*many, *ENTRIES]) == (ENTRIES, [])  # all of a put or nothing


@pytest.mark.parametrize("lock", ["IMMEDIATE", "EXCLUSIVE"])
def test_lock_that_never_comes(path: Path, monkeypatch: pytest.MonkeyPatch, lock: str) -> None:
    monkeypatch.setattr(cache_module, "_LOCK_SECONDS", 0.01)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute(f"BEGIN {lock}")
    with LatencyCache(path) as cache:
        for i in range(3):
            cache.put(CONTEXT, {f"new {i}": {"ms": 1.0}})
        entries = cache.get(CONTEXT, ["new 0", "chain 1"])
    other.close()
    [note] = cache.notes
    assert "database is locked" in note
    assert entries["new 0"] == {"ms": 1.0}
    assert ("chain 1" in entries) == (lock == "IMMEDIATE")  # which lets others read
    assert found(path, ["new 0", "chain 1"]) == ({"chain 1": ENTRIES["chain 1"]}, [])


def test_another_process_makes_the_file_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "latency.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    other.execute(cache_module._TABLE)
    other.execute(f"PRAGMA user_version = {cache_module._VERSION}")
    timer = threading.Timer(0.2, other.execute, ["COMMIT"])
    timer.start()
    with LatencyCache(path) as cache:
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
    with LatencyCache(path) as cache:
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
    with LatencyCache(default_cache_path()) as cache:
        cache.put(CONTEXT, {"a": {"ms": 1.0}})
    assert (tmp_path / "timings" / default_cache_path().name).is_file()
