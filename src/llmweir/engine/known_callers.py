"""The callers that this host's workers have seen valid: whom open mode lets in while Redis is away, and nobody else.

One SQLite file, which all workers of the host share. The newest word on a caller counts, whichever worker had it; a
caller that was refused keeps a row without a profile, so that what another worker saw before does not bring it back.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from llmweir.decision import Caller
from llmweir.engine.known_callers_file import CallersFile
from llmweir.engine.wall_clock import wall_clock_ms

_log = logging.getLogger("llmweir.known_callers")
_T = TypeVar("_T")

_WRITE_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 0.25
_REFRESH_MS = 600_000
_CLOCK_LEEWAY_MS = 60_000
_DAMAGED = {11, 26}  # SQLITE_CORRUPT, SQLITE_NOTADB
_NO_TABLE = 1  # SQLITE_ERROR: to the one that has just made the tables, these are another program's

# A row from a clock that was set back since is overruled: it would stand for as long as that clock was ahead.
_SAW = f"""
INSERT INTO callers (name, caller, seen_ms) VALUES (:name, :caller, :seen_ms)
ON CONFLICT (name) DO UPDATE SET caller = excluded.caller, seen_ms = excluded.seen_ms
WHERE (excluded.seen_ms >= seen_ms OR seen_ms > :now_ms + {_CLOCK_LEEWAY_MS})
AND (excluded.caller IS NOT caller OR abs(excluded.seen_ms - seen_ms) > {_REFRESH_MS})
"""  # noqa: S608 (constants)
_LOST = f"""
UPDATE callers SET caller = NULL, seen_ms = :seen_ms
WHERE name = :name AND (seen_ms <= :seen_ms + {_CLOCK_LEEWAY_MS} OR seen_ms > :now_ms + {_CLOCK_LEEWAY_MS})
"""  # noqa: S608 (constants)
_FIND = "SELECT caller, seen_ms FROM callers WHERE name = ?"
_TRIM = """
DELETE FROM callers WHERE name IN (
    SELECT name FROM callers ORDER BY seen_ms LIMIT max(0, (SELECT count(*) FROM callers) - ?)
)
"""


class KnownCallers:
    """Remembers up to `most` callers in the file `path`; where that cannot be written, in memory only.

    A caller goes by the hash of its API key, or by its user id where the app named it: `key_hash` is "" then. No
    method raises because of the file, and none but `flush`, `find` and `close` touches it.
    """

    def __init__(self, path: Path, *, most: int = 100_000, clock_ms: Callable[[], int] = wall_clock_ms) -> None:
        self._path = path
        self._most = most
        self._clock_ms = clock_ms
        self._seen: dict[str, tuple[Caller, int]] = {}
        self._lost: dict[str, int] = {}
        self._decode = msgspec.json.Decoder(Caller).decode
        self._is_warned = False
        self._of_parent: list[CallersFile] = []
        self._open()

    def _open(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._writer = CallersFile(self._path, timeout_s=_WRITE_TIMEOUT_S)
        self._reader = CallersFile(self._path, timeout_s=_READ_TIMEOUT_S)

    def saw(self, key_hash: str, caller: Caller) -> None:
        """Takes note of a caller that was let in."""
        name = _name(key_hash, caller.user_id)
        with self._mine():
            self._lost.pop(name, None)
            self._seen[name] = (caller, self._clock_ms())
            if len(self._seen) > self._most:
                del self._seen[next(iter(self._seen))]

    def lost(self, key_hash: str, user_id: str) -> None:
        """Forgets a caller that was refused as unknown, expired or blocked."""
        name = _name(key_hash, user_id)
        with self._mine():
            self._seen.pop(name, None)
            self._lost[name] = self._clock_ms()
            if len(self._lost) > self._most:
                del self._lost[next(iter(self._lost))]

    def flush(self) -> None:
        """Writes what is new in one transaction; what cannot be written is kept for the next time."""
        with self._mine():
            seen, lost = self._seen, self._lost
        if not seen and not (lost and self._path.exists()):
            return
        with self._lock:
            seen, lost = dict(self._seen), dict(self._lost)
        is_written = self._try(self._writer, lambda connection: self._write(connection, seen, lost), otherwise=False)
        if is_written:
            self._is_warned = False
            with self._lock:
                _remove(self._seen, seen)
                _remove(self._lost, lost)

    def find(self, key_hash: str, user_id: str = "") -> Caller | None:
        """The caller as it was last let in, by this worker or another of the host; None where it is not known."""
        name = _name(key_hash, user_id)
        with self._mine():
            caller, seen_ms = self._seen.get(name) or (None, self._lost.get(name, -1))
        row = self._try(self._reader, lambda connection: connection.execute(_FIND, (name,)).fetchone(), otherwise=None)
        if row is not None and (seen_ms < 0 or seen_ms < row[1] <= self._clock_ms() + _CLOCK_LEEWAY_MS):
            caller = self._caller(row[0])
        return msgspec.structs.replace(caller, request_id="") if caller is not None else None

    def close(self) -> None:
        """Flushes, and closes the file."""
        self.flush()
        for file in (self._writer, self._reader):
            with file.lock, contextlib.suppress(sqlite3.Error):
                file.close()

    def _mine(self) -> threading.Lock:
        """The lock; a child process must not use its parent's connections, and not even close them."""
        if self._pid != os.getpid():
            self._of_parent += [self._writer, self._reader]
            self._open()
        return self._lock

    def _caller(self, text: object) -> Caller | None:
        if not isinstance(text, bytes):
            return None
        try:
            return self._decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    def _write(self, connection: sqlite3.Connection, seen: dict[str, tuple[Caller, int]], lost: dict[str, int]) -> bool:
        now_ms = self._clock_ms()
        rows = [
            {"name": name, "caller": text, "seen_ms": seen_ms, "now_ms": now_ms}
            for name, (caller, seen_ms) in seen.items()
            if (text := _text(caller)) is not None
        ]
        gone = [{"name": name, "seen_ms": lost_ms, "now_ms": now_ms} for name, lost_ms in lost.items()]
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            connection.executemany(_LOST, gone)
            connection.executemany(_SAW, rows)
            connection.execute(_TRIM, (self._most,))
        return True

    def _try(self, file: CallersFile, act: Callable[[sqlite3.Connection], _T], *, otherwise: _T) -> _T:
        """Acts on the file, on a new one if it is damaged; where that fails, says so once and goes on without it."""
        with file.lock:
            for _ in range(2):
                try:
                    connection = file.connection(is_made=file is self._writer)
                    return act(connection) if connection is not None else otherwise
                except (sqlite3.Error, OSError) as error:
                    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                    if code == _NO_TABLE and file is self._reader:  # another worker is about to make them
                        break
                    if code != _NO_TABLE and code not in _DAMAGED:
                        self._warn(error)
                        break
                    self._replace(file, error)
        return otherwise

    def _replace(self, file: CallersFile, error: Exception) -> None:
        try:
            with contextlib.suppress(sqlite3.Error):
                file.close()
            moved = file.move_aside(self._clock_ms())
        except OSError as refused:
            self._warn(refused)
            return
        if moved is not None:
            _log.error("known_callers_damaged error=%r moved_to=%r", str(error), str(moved))

    def _warn(self, error: Exception) -> None:
        if not self._is_warned:
            self._is_warned = True
            _log.warning("known_callers_in_memory_only path=%r error=%r", str(self._path), str(error))


def _name(key_hash: str, user_id: str) -> str:
    return f"key {key_hash}" if key_hash else f"user {user_id}"


def _text(caller: Caller) -> bytes | None:
    try:
        return msgspec.json.encode(msgspec.structs.replace(caller, request_id=""))
    except (TypeError, ValueError, OverflowError, RecursionError):  # what the app put into `metadata` is no JSON
        return None


def _remove(newer: dict[str, _T], written: dict[str, _T]) -> None:
    """Takes out what was written, but for what changed meanwhile."""
    for name, value in written.items():
        if newer.get(name) is value:
            del newer[name]
