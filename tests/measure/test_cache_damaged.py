"""The cache of timings: nothing wrong with the file raises or lies."""

from __future__ import annotations

import random
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest
from timings import CONTEXT, ENTRIES, assert_memory_serves, found

from factorize.measure import cache as cache_module
from factorize.measure.cache import NumberCache


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of `ENTRIES`, written once; tests damage copies of it."""
    path = tmp_path_factory.mktemp("whole") / "latency.sqlite"
    with NumberCache(path) as cache:
        cache.put(CONTEXT, ENTRIES)
    return path


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path / "latency.sqlite"))


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
    with NumberCache(path) as cache:
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
        with NumberCache(path) as cache:
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
    with NumberCache(path) as cache:
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
    with NumberCache(path) as cache:
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
    with NumberCache(path) as cache:
        for i in range(3):
            cache.put(CONTEXT, {f"new {i}": {"ms": 1.0}})
        entries = cache.get(CONTEXT, ["new 0", "chain 1"])
    other.close()
    [note] = cache.notes
    assert "database is locked" in note
    assert entries["new 0"] == {"ms": 1.0}
    assert ("chain 1" in entries) == (lock == "IMMEDIATE")  # which lets others read
    assert found(path, ["new 0", "chain 1"]) == ({"chain 1": ENTRIES["chain 1"]}, [])
