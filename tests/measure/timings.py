"""What the tests of the cache share: timings, and what is found of them in a file."""

from __future__ import annotations

from pathlib import Path

from factorize.measure.cache import NumberCache

CONTEXT = {"runtime": "onnxruntime", "threads": 2, "batch": 1, "versions": {"torch": "2.6"}}
ENTRIES = {f"chain {i}": {"median_ms": 0.1 + i, "dense_ms": 2.0 * i} for i in range(100)}


def found(path: Path, keys: object = ENTRIES) -> tuple[dict[str, dict[str, float]], list[str]]:
    with NumberCache(path) as cache:
        return cache.get(CONTEXT, keys), cache.notes  # type: ignore[arg-type]


def assert_memory_serves(path: Path) -> str:
    """Use a cache whose file cannot be used: one note in one line, and memory instead."""
    with NumberCache(path) as cache:
        assert cache.get(CONTEXT, ENTRIES) == {}
        cache.put(CONTEXT, {"new": {"ms": 1.0}})
        assert cache.get(CONTEXT, ["new", "other"]) == {"new": {"ms": 1.0}}
    [note] = cache.notes
    assert note.startswith(f"{path}: ")
    assert "Delete it, or set FACTORIZE_CACHE" in note
    assert note.isprintable()
    return note
