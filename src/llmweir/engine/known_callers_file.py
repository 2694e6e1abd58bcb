"""The SQLite file of the known callers: made when it is needed, moved aside when it is damaged."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
from pathlib import Path

from llmweir.engine.outbox_files import make_folder

_SCHEMA = """
CREATE TABLE IF NOT EXISTS callers (name TEXT PRIMARY KEY, caller BLOB, seen_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS callers_by_time ON callers (seen_ms);
"""


class CallersFile:
    """One connection to the file, made when it is needed, and made anew when another file is in its place."""

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        self.lock = threading.Lock()
        self._path = path
        self._timeout_s = timeout_s
        self._connection: sqlite3.Connection | None = None
        self._status: os.stat_result | None = None

    def connection(self, *, is_made: bool) -> sqlite3.Connection | None:
        """The connection; None where there is no file, and it is not to be made. Raises sqlite3.Error, OSError."""
        status = self._stat()
        if self._connection is not None and status and self._status and os.path.samestat(status, self._status):
            return self._connection
        self.close()
        if status is None:
            if not is_made:
                return None
            make_folder(self._path.parent)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        self._connection = sqlite3.connect(
            self._path, timeout=self._timeout_s, isolation_level=None, check_same_thread=False
        )
        self._status = self._stat()
        if is_made:
            self._connection.execute("PRAGMA journal_mode = WAL").fetchone()
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.executescript(_SCHEMA)
        return self._connection

    def close(self) -> None:
        """Closes the connection."""
        connection, self._connection, self._status = self._connection, None, None
        if connection is not None:
            connection.close()

    def move_aside(self, now_ms: int) -> Path | None:
        """Renames a damaged file; None where another process did so first. Raises OSError."""
        damaged = self._path.with_name(f"{self._path.name}.damaged-{now_ms}")
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # another one is at it: nobody waits
                if not os.path.samestat(os.fstat(fd), self._path.stat()):
                    return None
                for suffix in ("-wal", "-shm", ""):  # a new file must never find the log of the old one
                    with contextlib.suppress(FileNotFoundError):
                        self._path.with_name(self._path.name + suffix).rename(f"{damaged}{suffix}")
                return damaged
            finally:
                os.close(fd)
        return None

    def _stat(self) -> os.stat_result | None:
        try:
            return self._path.stat()
        except FileNotFoundError:
            return None
