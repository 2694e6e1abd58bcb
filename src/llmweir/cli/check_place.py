"""What of a machine `llmweir check` looks at: the data folder, what waits in its outbox, the way to the upstream."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from llmweir.cli.plain_text import counted
from llmweir.engine.inspection_rules import Remark
from llmweir.engine.outbox_aside import FILES
from llmweir.engine.outbox_files import paths_in

OUTBOX = "outbox"
_CHUNK_BYTES = 1 << 20
_PATIENCE_S = 3.0


def data_dir_remark(folder: Path) -> Remark:
    """Whether the data folder can be written, or be made."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return Remark("data_dir", "error", f"{folder} cannot be a folder: {place} is a file.")
    if not os.access(place, os.W_OK | os.X_OK):
        return Remark("data_dir", "error", f"{folder} cannot be written.")
    free_bytes = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    made = "" if place == folder.absolute() else " is made when it is needed; it"
    return Remark("data_dir", "ok", f"{folder}{made} can be written; {free_bytes / 1e9:.1f} GB are free.")


def outbox_remark(data_dir: Path) -> Remark:
    """What waits to be settled, and what a person has to look at."""
    folder = data_dir / OUTBOX
    try:
        waiting = sum(map(_lines_in, paths_in(folder)))
        aside = {name: lines for name in FILES.values() if (lines := _lines_in(folder / name))}
    except OSError as error:
        return Remark("outbox", "error", f"{folder} cannot be read: {error.strerror}.")
    if not waiting and not aside:
        return Remark("outbox", "ok", "Nothing waits to be settled.")
    told = (
        [f"{counted(waiting, 'settlement')} at most to replay when a worker runs and Redis answers"] if waiting else []
    )
    told += [
        f"{counted(lines, 'line')} set aside in {folder / name}, for a person to look at"
        for name, lines in aside.items()
    ]
    return Remark("outbox", "warning", f"{'; '.join(told)}.")


def upstream_remark(upstream: str | None) -> Remark:
    """Whether somebody listens where the upstream should be; no request is sent."""
    if upstream is None:
        return Remark("upstream", "ok", "None is set: llmweir stands around an app.")
    parts = urlsplit(upstream)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=_PATIENCE_S):
            return Remark("upstream", "ok", f"{upstream} can be reached.")
    except OSError as error:
        reason = error.strerror or str(error) or "no answer"
        return Remark("upstream", "warning", f"{upstream} cannot be reached: {reason}.")


def _lines_in(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""))
    except FileNotFoundError:
        return 0
