"""What the outbox cannot replay is set aside in files that nobody but a person takes up again."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from llmweir.engine.asks import KeptSettlement
from llmweir.engine.outbox_files import OutboxFile, write_all

_log = logging.getLogger("llmweir.outbox")

Reason = Literal["damaged", "too-old", "refused"]
FILES: Final[dict[Reason, str]] = {
    "damaged": "damaged-lines.txt",
    "too-old": "too-old.jsonl",
    "refused": "refused.jsonl",
}

_MOST_WAITING_BYTES = 1 << 20
_LOG_INTERVAL_S = 10.0


class Seldom:
    """Says yes once in a while, so that what happens a thousand times a second is logged a few times a minute."""

    def __init__(self, interval_s: float = _LOG_INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._next_s = 0.0

    def is_due(self) -> bool:
        """Whether the last yes is long enough ago."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return False
        self._next_s = now_s + self._interval_s
        return True


@dataclass(eq=False, slots=True)
class Entry:
    """A line of the outbox on its way: `file` is None while no disk has it, `record` None where it is damaged."""

    line: bytes
    record: KeptSettlement | None
    file: OutboxFile | None
    is_handed_out: bool = False


class SetAside:
    """Lines that are to be set aside, and wait until the disk takes them; their own files stay as long."""

    def __init__(self, folder: Path, *, is_synced: bool) -> None:
        self._folder = folder
        self._is_synced = is_synced
        self._waiting: list[tuple[Reason, Entry]] = []
        self._waiting_bytes = 0
        self._before = b""
        self._logs = Seldom()

    @property
    def has_room(self) -> bool:
        """Whether more may be put here before the disk has taken what waits."""
        return self._waiting_bytes < _MOST_WAITING_BYTES

    def put(self, reason: Reason, entry: Entry) -> None:
        """Takes a line."""
        self._waiting.append((reason, entry))
        self._waiting_bytes += len(entry.line)

    def write(self) -> list[Entry]:
        """Writes what waits; returns what the disk has now: nothing, where it does not take it."""
        if not self._waiting:
            return []
        try:
            for reason in {reason for reason, _ in self._waiting}:
                self._append(reason)
        except OSError as error:
            if self._logs.is_due():
                _log.error("outbox_cannot_set_aside records=%d error=%r", len(self._waiting), str(error))
            return []
        for reason, count in Counter(reason for reason, _ in self._waiting).items():
            path = self._folder / FILES[reason]
            _log.error("outbox_records_set_aside reason=%s records=%d path=%r", reason, count, str(path))
        written = [entry for _, entry in self._waiting]
        self._waiting.clear()
        self._waiting_bytes = 0
        return written

    def _append(self, reason: Reason) -> None:
        """Appends to a file that all workers share; what a full disk cut short before ends in a line of its own."""
        lines = b"".join(entry.line.rstrip(b"\n") + b"\n" for why, entry in self._waiting if why == reason)
        path = self._folder / FILES[reason]
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            before, self._before = self._before, b"\n"
            write_all(fd, before + lines)
            if self._is_synced:
                os.fsync(fd)
            self._before = b""
        finally:
            os.close(fd)
