"""The file in which an import hands over new API keys, and by which an import that broke off goes on."""

from __future__ import annotations

import contextlib
import csv
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

_HEAD = ("user_id", "key_alias", "key_name", "old_token", "new_key", "state")
PENDING, MINTED = "pending", "minted"


class KeyFileError(Exception):
    """The file cannot be read or written, or is none of ours; the message says which, and holds no key."""


class NewKeyRow(msgspec.Struct, frozen=True):
    """A key that an old one is replaced by: `old_token` is the old one's SHA-256, `new_key` the new one in clear.

    `state` is "pending" until the server is known to have it.
    """

    user_id: str
    key_alias: str
    key_name: str
    old_token: str
    new_key: str
    state: str = PENDING


class KeyFile:
    """A CSV file of new keys, one a row, that only its owner can read; it is replaced whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, NewKeyRow]:
        """The rows by old token; none where there is no file. Raises KeyFileError."""
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                lines = list(csv.reader(file))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, csv.Error) as error:
            raise KeyFileError(f"{self.path} cannot be read as a file of keys.") from error
        if not lines or tuple(lines[0]) != _HEAD or any(len(line) != len(_HEAD) for line in lines):
            raise KeyFileError(f"{self.path} is there and is no file of keys that an import has written.")
        rows = [NewKeyRow(*line) for line in lines[1:]]
        return {row.old_token: row for row in rows}

    def write(self, rows: Iterable[NewKeyRow]) -> None:
        """Replaces the file, and is back when it is on the disk. Raises KeyFileError."""
        try:
            self._replace(rows)
        except OSError as error:
            raise KeyFileError(f"{self.path} cannot be written: {error.strerror}.") from error

    def _replace(self, rows: Iterable[NewKeyRow]) -> None:
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")  # its mode is 0600
        try:
            with os.fdopen(handle, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(_HEAD)
                writer.writerows(msgspec.structs.astuple(row) for row in rows)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
