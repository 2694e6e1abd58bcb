"""Settlements kept on disk while Redis is away.

Each worker appends to files of its own in one folder, and holds each by a lock. At a worker's death the kernel drops
its locks, and the next worker that looks takes the files over. A file goes when all of its records are settled; a
worker that dies before that leaves some that are: they are replayed, and their ids make that harmless.

What the disk does not take stays in memory, in order, until it does.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

from llmweir.engine.asks import KeptSettlement
from llmweir.engine.outbox_aside import Entry, Seldom, SetAside
from llmweir.engine.outbox_files import OutboxFile
from llmweir.engine.outbox_held import HeldFiles, run_in_children
from llmweir.engine.outbox_lines import pack, unpack
from llmweir.engine.wall_clock import wall_clock_ms

_log = logging.getLogger("llmweir.outbox")
_FILE_BYTES = 8 << 20
_MOST_LINES_AT_ONCE = 256
_MOST_LINES_READ = 20_000
_RETRY_INTERVAL_S = 0.1
_Lines: TypeAlias = list[bytes]


class Outbox:
    """The settlements of one worker that Redis has not answered for, in append-only files under `folder`.

    `fsync`: with "always" a record is on the disk before `keep` returns; with "everysec" the caller has `sync` run
    once a second. `file_bytes` is the size past which a new file begins. All methods may be called from any thread.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fsync: Literal["always", "everysec"],
        max_bytes: int,
        max_age_ms: int,
        clock_ms: Callable[[], int] = wall_clock_ms,
        file_bytes: int = _FILE_BYTES,
    ) -> None:
        self._folder = folder
        self._is_always_synced = fsync == "always"
        self._max_bytes = max_bytes
        self._max_age_ms = max_age_ms
        self._clock_ms = clock_ms
        self._file_bytes = file_bytes
        self.set_aside = 0
        self.failed_writes = 0
        self._begin()
        run_in_children(weakref.WeakMethod(self._leave_to_parent))

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._files = HeldFiles(self._folder, clock_ms=self._clock_ms, file_bytes=self._file_bytes)
        self._aside = SetAside(self._folder, is_synced=self._is_always_synced)
        self._unwritten: deque[Entry] = deque()
        self._handed_out: deque[Entry] = deque()
        self._next_try_s = 0.0
        self._logs = Seldom()

    @property
    def has_room(self) -> bool:
        """Whether more may be kept: the files are smaller than `max_bytes`, and the disk takes what is written."""
        return self._files.bytes < self._max_bytes and not self._unwritten

    @property
    def bytes(self) -> int:
        """The size of all files that this worker holds."""
        return self._files.bytes

    @property
    def records(self) -> int:
        """The number of records that are neither confirmed nor set aside, those only in memory included."""
        with self._mine():
            return sum(file.records for file in self._files) + len(self._unwritten)

    def keep(self, *kept: KeptSettlement) -> None:
        """Writes records to the file before it returns; what the disk does not take is kept in memory, and counted."""
        with self._mine():
            is_failing = bool(self._unwritten)
            self._unwritten.extend(Entry(pack(one), one, None) for one in kept)
            if not is_failing or time.monotonic() >= self._next_try_s:
                self._write()

    def oldest(self, count: int) -> list[KeptSettlement]:
        """Gives the oldest records that are not confirmed, in order: those of dead workers first.

        They may be fewer than `count`, and none, while there are more: where very many are set aside in between.
        """
        with self._mine():
            self._set_aged_aside()
            self._read(count)
            self._write_aside()
            return [entry.record for entry in islice(self._handed_out, count) if entry.record is not None]

    def confirm(self, count: int) -> None:
        """Forgets the first `count` of what `oldest` gave: they are settled."""
        with self._mine():
            for _ in range(min(count, len(self._handed_out))):
                self._settle(self._handed_out.popleft())

    def refuse_oldest(self) -> None:
        """Sets the first of what `oldest` gave aside: Redis will never take it."""
        with self._mine():
            if self._handed_out:
                self._aside.put("refused", self._handed_out.popleft())
                self._write_aside()

    def adopt(self) -> int:
        """Takes over the files of workers that are dead; returns how many records there are in them."""
        with self._mine():
            self._write()
            self._write_aside()
            self._files.look_after()
            files, held = self._files, self._files.paths
        claimed = files.claim_dead(held)  # counting lines takes its time, and `keep` need not wait for it
        adopted = sum(file.records for file in claimed)
        with self._mine():
            files.add(claimed)
        if adopted:
            _log.info("outbox_adopted records=%d files=%d", adopted, len(claimed))
        return adopted

    def sync(self) -> None:
        """Has the disk itself take what was written since the last call; `keep` does not wait for it."""
        with self._mine():
            self._write()
            dirty = self._files.take_dirty()
        for file, fd in dirty:
            try:
                os.fsync(fd)
            except OSError as error:
                with self._mine():
                    file.is_dirty = True
                    self._failed(error)
            finally:
                os.close(fd)
        self._files.sync_folders()

    def close(self) -> None:
        """Writes what can be written, and lets go of the files: the next worker takes them over."""
        self.sync()
        with self._mine():
            self._write_aside()
            if self._unwritten:
                _log.error("outbox_lost records=%d", len(self._unwritten))
            self._files.close()
            self._begin()

    def _mine(self) -> threading.RLock:
        """The lock; a child process must not write to its parent's files, nor wait for a lock that went with it."""
        if self._pid != os.getpid():
            self._leave_to_parent()
        return self._lock

    def _leave_to_parent(self) -> None:
        self._files.close()
        self.set_aside = self.failed_writes = 0
        self._begin()

    def _write(self) -> None:
        """Writes what only memory has: one line first, and more where the disk takes it."""
        at_once = 1
        while self._unwritten:
            entries = list(islice(self._unwritten, at_once))
            try:
                file = self._files.append(b"".join(entry.line for entry in entries), len(entries))
            except OSError as error:
                self._next_try_s = time.monotonic() + _RETRY_INTERVAL_S
                self._failed(error)
                return
            self._written(entries, file)
            at_once = min(at_once * 2, _MOST_LINES_AT_ONCE)

    def _written(self, entries: list[Entry], file: OutboxFile) -> None:
        for entry in entries:
            self._unwritten.popleft()
            entry.file = file
            if entry.is_handed_out:  # memory is handed out last, and after a failure a new file begins: its first lines
                file.hand_out(entry.line)
        if not self._is_always_synced:
            return
        try:
            os.fsync(file.fd)
            file.is_dirty = False
        except OSError as error:
            self._failed(error)
        self._files.sync_folders()

    def _read(self, count: int) -> None:
        """Reads on until `count` records are handed out."""
        most_lines = _MOST_LINES_READ
        for file in self._files:
            while file.has_more and most_lines > 0 and self._aside.has_room:
                wanted = count - len(self._handed_out)
                if wanted <= 0:
                    return
                lines = self._next_lines(file, min(wanted, most_lines))
                if not lines:
                    break
                most_lines -= len(lines)
                self._hand_out(file, lines)
        for entry in islice(self._unwritten, max(0, count)):
            if not entry.is_handed_out and len(self._handed_out) < count:
                entry.is_handed_out = True
                self._handed_out.append(entry)

    def _next_lines(self, file: OutboxFile, most: int) -> _Lines:
        try:
            lines = file.next_lines(most)
        except OSError as error:
            self._files.cannot_read(file.path, error)
            return []
        if not lines:
            _log.error("outbox_file_cut_short path=%r", str(file.path))
            self._files.delete_if_settled(file)
        return lines

    def _hand_out(self, file: OutboxFile, lines: _Lines) -> None:
        for line in lines:
            entry = Entry(line, unpack(line), file, is_handed_out=True)
            if entry.record is None:
                self._aside.put("damaged", entry)
            elif self._is_too_old(entry):
                self._aside.put("too-old", entry)
            else:
                self._handed_out.append(entry)
        if not self._aside.has_room:
            self._write_aside()

    def _is_too_old(self, entry: Entry) -> bool:
        """Whether Redis has forgotten the record's id; one without a time is no younger than its file's last line."""
        at_ms = entry.record.at_ms if entry.record is not None else 0
        at_ms = at_ms or (entry.file.written_ms if entry.file is not None else 0)
        return bool(at_ms) and self._clock_ms() - at_ms > self._max_age_ms

    def _set_aged_aside(self) -> None:
        for entry in [entry for entry in self._handed_out if self._is_too_old(entry)]:
            self._handed_out.remove(entry)
            self._aside.put("too-old", entry)

    def _write_aside(self) -> None:
        for entry in self._aside.write():
            self.set_aside += 1
            self._settle(entry)

    def _settle(self, entry: Entry) -> None:
        if entry.file is None:
            self._unwritten.remove(entry)
        else:
            entry.file.unsettled -= 1
            self._files.delete_if_settled(entry.file)

    def _failed(self, error: OSError) -> None:
        self.failed_writes += 1
        if self._logs.is_due():
            _log.error("outbox_disk_refuses in_memory=%d error=%r", len(self._unwritten), str(error))
