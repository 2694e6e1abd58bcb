"""The files of the outbox that this process holds: those of dead workers first, then its own, oldest first."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import weakref
from collections.abc import Callable, Collection, Iterator
from itertools import chain
from pathlib import Path

from llmweir.engine.outbox_aside import Seldom
from llmweir.engine.outbox_files import OutboxFile, make_folder, paths_in, sync_folder

_log = logging.getLogger("llmweir.outbox")


class HeldFiles:
    """Makes, takes over and deletes files; a new one begins past `file_bytes`, and after each write that failed."""

    def __init__(self, folder: Path, *, clock_ms: Callable[[], int], file_bytes: int) -> None:
        self.bytes = 0
        self._folder = folder
        self._clock_ms = clock_ms
        self._file_bytes = file_bytes
        self._name = secrets.token_hex(4)
        self._made_files = 0
        self._made_ms = 0
        self._adopted: list[OutboxFile] = []
        self._own: list[OutboxFile] = []
        self._deleted_later: list[OutboxFile] = []
        self._writer: OutboxFile | None = None
        self._changed_folders: list[Path] = []
        self._logs = Seldom()

    def __iter__(self) -> Iterator[OutboxFile]:
        return iter([*self._adopted, *self._own])

    @property
    def paths(self) -> set[Path]:
        """Where the files lie, those included that could not be deleted."""
        return {file.path for file in chain(self, self._deleted_later)}

    def append(self, lines: bytes, count: int) -> OutboxFile:
        """Appends `count` lines, and returns the file that has them. Raises OSError, and then no file has them."""
        writer = self._writer or self._new_file()
        try:
            writer.append(lines, count)
        except OSError:
            self._writer = None
            if not writer.size_bytes:
                self._forget(writer)
            raise
        self.bytes += len(lines)
        writer.written_ms = self._clock_ms()
        if writer.size_bytes >= self._file_bytes:
            self._writer = None
        return writer

    def claim_dead(self, held: Collection[Path]) -> list[OutboxFile]:
        """Takes over the files of dead workers: all that can be locked, but for those `held` here."""
        try:
            paths = paths_in(self._folder)
        except OSError as error:
            self.cannot_read(self._folder, error)
            return []
        return [file for path in paths if path not in held for file in self._claim(path)]

    def add(self, claimed: list[OutboxFile]) -> None:
        """Puts files behind those that were taken over before."""
        for file in claimed:
            self._adopted.append(file)
            self.bytes += file.size_bytes
            self.delete_if_settled(file)

    def look_after(self) -> None:
        """Deletes what could not be deleted before, and leaves a file alone that somebody else has deleted."""
        later, self._deleted_later = self._deleted_later, []
        for file in later:
            self._delete(file)
        if self._writer is not None and self._writer.is_gone():
            _log.error("outbox_file_gone path=%r records=%d", str(self._writer.path), self._writer.records)
            self._writer = None

    def delete_if_settled(self, file: OutboxFile) -> None:
        """Deletes a file of which nothing is left to do."""
        if not file.records and not file.has_more:
            self._forget(file)

    def take_dirty(self) -> list[tuple[OutboxFile, int]]:
        """What the disk itself may not have yet, with descriptors of the caller's own; it counts as clean now."""
        dirty = [(file, os.dup(file.fd)) for file in self._own if file.is_dirty]
        for file, _ in dirty:
            file.is_dirty = False
        return dirty

    def sync_folders(self) -> None:
        """Has the disk remember the files that were made."""
        folders, self._changed_folders = self._changed_folders, []
        for folder in dict.fromkeys(folders):
            with contextlib.suppress(OSError):  # some file systems cannot
                sync_folder(folder)

    def close(self) -> None:
        """Lets go of all files."""
        for file in chain(self, self._deleted_later):
            with contextlib.suppress(OSError):
                file.close()

    def cannot_read(self, path: Path, error: OSError) -> None:
        """Says so, now and then."""
        if self._logs.is_due():
            _log.error("outbox_cannot_read path=%r error=%r", str(path), str(error))

    def _claim(self, path: Path) -> Iterator[OutboxFile]:
        try:
            file = OutboxFile.claim(path)
        except OSError as error:
            self.cannot_read(path, error)
            return
        if file is not None:
            yield file

    def _new_file(self) -> OutboxFile:
        self._changed_folders += [*make_folder(self._folder), self._folder]
        self._made_ms = max(self._made_ms, self._clock_ms())
        self._made_files += 1
        name = f"{self._made_ms:013d}-{self._name}-{self._made_files:06d}"
        self._writer = OutboxFile.create(self._folder, name)
        self._own.append(self._writer)
        return self._writer

    def _forget(self, file: OutboxFile) -> None:
        (self._own if file in self._own else self._adopted).remove(file)
        if self._writer is file:
            self._writer = None
        self.bytes -= file.size_bytes
        self._delete(file)

    def _delete(self, file: OutboxFile) -> None:
        try:
            file.delete()
        except OSError as error:
            self._deleted_later.append(file)
            if self._logs.is_due():
                _log.error("outbox_cannot_delete path=%r error=%r", str(file.path), str(error))


def run_in_children(leave: weakref.WeakMethod[Callable[[], None]]) -> None:
    """Runs in each child process: it would hold its parent's locks, which go with the last descriptor."""

    def leave_to_parent() -> None:
        method = leave()
        if method is not None:
            method()

    os.register_at_fork(after_in_child=leave_to_parent)
