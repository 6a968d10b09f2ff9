"""Numbers kept on disk between runs, such as times: an SQLite file, which may fail at any time.

A cache is a convenience: whatever is wrong with the file or its folder becomes one line in
``notes``, and the numbers of this run are then kept in memory.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import platformdirs

_VERSION = 1  # of the table; in the file's name too, so that releases do not meet in one file
LARGEST = 64e6  # bytes
_LOCK_SECONDS = 10.0  # to wait for another process
_TABLE = """
    CREATE TABLE IF NOT EXISTS timings (
        context TEXT, key TEXT, entry TEXT, checksum INTEGER, PRIMARY KEY (context, key)
    ) WITHOUT ROWID
"""
# As bytes, as damaged text need not be UTF-8.
_SELECT = "SELECT CAST(entry AS BLOB), checksum FROM timings WHERE context = ? AND key = ?"

# ValueError: sqlite3 found damaged text where it expected UTF-8. RuntimeError: no home folder.
_FAILURES = (OSError, RuntimeError, ValueError, sqlite3.Error)


def default_cache_path(name: str = "latency") -> Path:
    """A file in ``$FACTORIZE_CACHE`` or, unset, in the user's cache folder.

    Begins with ``~`` where the user has no home; `NumberCache` makes that a note.
    """
    folder = os.environ.get("FACTORIZE_CACHE")
    try:
        folder = Path(folder) if folder else platformdirs.user_cache_path("factorize")
    except RuntimeError:
        folder = Path("~/.cache/factorize")
    return folder / f"{name}-{_VERSION}.sqlite"


class NumberCache:
    """Numbers by context and key, safe against other processes that use the same file.

    Opened at the first `get` or `put`; no method raises for what is wrong with the file. Entries
    put or found by this object are found again whatever becomes of the disk.

    Parameters
    ----------
    path
        Of the file; it and its folder are made when missing, and it is emptied where it has grown
        beyond `LARGEST`. None: memory only.
    of
        What the numbers are, for the notes.

    Attributes
    ----------
    notes
        One line for each thing that went wrong.
    """

    def __init__(self, path: Path | None, of: str = "timings") -> None:
        self.notes: list[str] = []
        self._of = of
        self._path = path
        self._writable = True
        self._connection: sqlite3.Connection | None = None
        self._memory: dict[tuple[str, str], dict[str, float]] = {}

    def __enter__(self) -> NumberCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a later `get` or `put` opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, context: Mapping[str, Any], keys: Iterable[str]) -> dict[str, dict[str, float]]:
        """Return the entries there are, by key.

        An entry that is not as it was put (edited by hand, or damaged) is as if not there.

        Parameters
        ----------
        context
            All that the numbers depend on beside the key; anything that JSON can hold.
        """
        where = _canonical(context)
        keys = list(dict.fromkeys(keys))
        self._read(where, [key for key in keys if (where, key) not in self._memory])
        return {key: dict(self._memory[where, key]) for key in keys if (where, key) in self._memory}

    def put(self, context: Mapping[str, Any], entries: Mapping[str, Mapping[str, float]]) -> None:
        """Keep entries, all or none of them on disk; one of the same key is replaced.

        An entry with a value that is not a finite number of at least 0 is not kept.

        Parameters
        ----------
        context
            As in `get`.
        """
        where = _canonical(context)
        rows = []
        for key, entry in entries.items():
            if all(isfinite(value) and value >= 0 for value in entry.values()):
                numbers = {name: float(value) for name, value in entry.items()}
                self._memory[where, key] = numbers
                text = _canonical(numbers)
                rows.append((where, key, text, _checksum(where, key, text.encode())))
        database = self._database()
        if database is None or not self._writable or not rows:
            return
        try:
            with database:  # one transaction
                database.execute("BEGIN IMMEDIATE")
                database.executemany("REPLACE INTO timings VALUES (?, ?, ?, ?)", rows)
        except _FAILURES as error:
            self._writable = False
            self._note(f"{self._of} are not kept for later runs", error)

    def _read(self, where: str, keys: list[str]) -> None:
        """Bring entries from disk into memory."""
        database = self._database()
        if database is None or not keys:
            return
        try:
            with database:
                database.execute("BEGIN")  # one lock for all keys
                for key in keys:
                    for entry, checksum in database.execute(_SELECT, (where, key)):
                        if entry and checksum == _checksum(where, key, entry):
                            self._memory[where, key] = json.loads(entry)
        except _FAILURES as error:
            self._ignore(error)

    def _database(self) -> sqlite3.Connection | None:
        """Open the file, unless it is open or was given up."""
        if self._connection is None and self._path is not None:
            try:
                path = self._path.expanduser()
                path.parent.mkdir(parents=True, exist_ok=True)
                self._connection = sqlite3.connect(
                    path, timeout=_LOCK_SECONDS, isolation_level=None
                )
                _prepare(self._connection)
                if path.stat().st_size > LARGEST:
                    self._connection.execute("DELETE FROM timings")
                    self._connection.execute("VACUUM")
            except _FAILURES as error:
                self._ignore(error)
        return self._connection

    def _ignore(self, error: Exception) -> None:
        self._note(f"the cache of {self._of} was ignored", error)
        self.close()
        self._path = None

    def _note(self, what: str, error: Exception) -> None:
        # A message may quote the damaged file.
        reason = "".join(c if c.isprintable() else "?" for c in str(error) or repr(error))
        self.notes.append(
            f"{self._path}: {what} ({reason}). Delete it, or set FACTORIZE_CACHE to a folder that "
            "can be written to."
        )


def _prepare(database: sqlite3.Connection) -> None:
    """Make the table in a new file; raise sqlite3.DatabaseError for one that is not ours."""
    # Both in one statement: another process may be making the table at this moment.
    version, tables = database.execute(
        "SELECT user_version, (SELECT count(*) FROM sqlite_master) FROM pragma_user_version"
    ).fetchone()
    if version == tables == 0:
        with database:
            database.execute("BEGIN IMMEDIATE")
            database.execute(_TABLE)
            database.execute(f"PRAGMA user_version = {_VERSION}")
    elif version != _VERSION:
        raise sqlite3.DatabaseError(f"its version is {version}, not {_VERSION}")


def _canonical(value: Mapping[str, Any]) -> str:
    """The one JSON text of a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _checksum(where: str, key: str, entry: bytes) -> int:
    return zlib.crc32(f"{where}\n{key}\n".encode() + entry)
