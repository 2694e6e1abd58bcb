"""The files of the outbox: each append-only, and held by one process by a lock that the kernel drops at its death."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path

from llmweir.engine.outbox_lines import unpack

LONGEST_LINE_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 16
_PREFIX, _SUFFIX = "settlements-", ".jsonl"
_TRIES = 8


def make_folder(folder: Path) -> list[Path]:
    """Makes a folder and those above it, for their owner alone; returns the folders that got a new entry."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
    return [path.parent for path in missing]


def sync_folder(folder: Path) -> None:
    """Has the disk remember which files are in a folder."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Writes all of `data`, or raises OSError with a part of it written."""
    while data:
        written = os.write(fd, data)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data = data[written:]


def paths_in(folder: Path) -> list[Path]:
    """The outbox files of a folder, oldest first; none where there is no folder."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 (cheaper, and it is asked every few seconds)
    except FileNotFoundError:
        return []
    return [folder / name for name in sorted(names) if name.startswith(_PREFIX) and name.endswith(_SUFFIX)]


class OutboxFile:
    """One file of the outbox, held by this process.

    `size_bytes` is where its whole lines end. `unread` records were not handed out yet, `unsettled` ones were, and are
    neither confirmed nor set aside.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.size_bytes = 0
        self.unread = 0
        self.unsettled = 0
        self.is_dirty = False
        self.written_ms = 0
        self._read_bytes = 0

    @classmethod
    def create(cls, folder: Path, name: str) -> OutboxFile:
        """Makes a file and holds it. Raises OSError."""
        for attempt in range(_TRIES):
            path = folder / f"{_PREFIX}{name}-{attempt}{_SUFFIX}"
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            if _hold(fd, path):
                return cls(path, fd)
            os.close(fd)  # another process took the new file for a dead worker's
        raise OSError(errno.EAGAIN, "other processes take each new outbox file")

    @classmethod
    def claim(cls, path: Path) -> OutboxFile | None:
        """Takes over the file of a dead worker; None where its worker lives, or it is gone. Raises OSError."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        claimed = cls(path, fd)
        try:
            if not _hold(fd, path):
                claimed.close()
                return None
            claimed._measure()
        except OSError:
            claimed.close()
            raise
        return claimed

    @property
    def records(self) -> int:
        """The number of records that are not settled."""
        return self.unread + self.unsettled

    @property
    def has_more(self) -> bool:
        """Whether there are lines that were not handed out."""
        return self._read_bytes < self.size_bytes

    def append(self, lines: bytes, count: int) -> None:
        """Writes `count` lines. Raises OSError, and then nothing of them counts, and nothing more may be appended."""
        try:
            write_all(self.fd, lines)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self.fd, self.size_bytes)
            raise
        self.size_bytes += len(lines)
        self.unread += count
        self.is_dirty = True

    def is_gone(self) -> bool:
        """Whether somebody else has deleted the file."""
        return not os.fstat(self.fd).st_nlink

    def hand_out(self, line: bytes) -> None:
        """Takes note that the next line was handed out before it was written."""
        self._read_bytes += len(line)
        self.unread -= 1
        self.unsettled += 1

    def next_lines(self, most: int) -> list[bytes]:
        """Up to `most` of the lines not handed out yet, without their new lines. Raises OSError."""
        data = self._next_chunk()
        end = data.rfind(b"\n") + 1
        lines = data[:end].split(b"\n")[:-1][:most] if end else [data] if data else []
        self._read_bytes += sum(map(len, lines)) + (len(lines) if end else 0)
        if not lines:  # somebody made the file shorter
            self.size_bytes = self._read_bytes
        self.unread = max(self.unread - len(lines), int(self.has_more)) if self.has_more else 0
        self.unsettled += len(lines)
        return lines

    def delete(self) -> None:
        """Removes the file, and lets go of it. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self.close()

    def close(self) -> None:
        """Lets go of the file: the lock goes with the last descriptor of it."""
        os.close(self.fd)

    def _next_chunk(self) -> bytes:
        wanted_bytes = _CHUNK_BYTES
        while True:
            left_bytes = self.size_bytes - self._read_bytes
            data = os.pread(self.fd, min(wanted_bytes, left_bytes), self._read_bytes)
            if b"\n" in data or len(data) in (0, left_bytes) or wanted_bytes >= LONGEST_LINE_BYTES:
                return data
            wanted_bytes *= 4

    def _measure(self) -> None:
        """Counts the lines; a last one that was not written to its end does not count."""
        status = os.fstat(self.fd)
        self.written_ms = status.st_mtime_ns // 1_000_000
        tail, offset = b"", 0
        while data := os.pread(self.fd, _CHUNK_BYTES, offset):
            offset += len(data)
            self.unread += data.count(b"\n")
            tail = (tail + data)[-LONGEST_LINE_BYTES:]
            tail = tail[tail.rfind(b"\n") + 1 :]
        is_whole = bool(tail) and unpack(tail) is not None
        self.size_bytes = offset if is_whole or len(tail) == LONGEST_LINE_BYTES else offset - len(tail)
        self.unread += self.size_bytes == offset and bool(tail)


def _hold(fd: int, path: Path) -> bool:
    """Locks a file; False where another process has it, or had it and deleted it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a file", str(path))
    try:
        return os.path.samestat(status, path.lstat())
    except FileNotFoundError:
        return False
