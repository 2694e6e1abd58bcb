"""The data folder as the bundled Valkey uses it: its locks, its socket, its log.

The story of the locks is told in `embedded`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ORPHAN_TIMEOUT_S = 10.0
PING_TIMEOUT_S = 1.0
POLL_S = 0.01
SOCKET_PATH_LIMIT_BYTES = 100  # sun_path is 108 bytes on Linux, 104 on macOS
SOCKET = "valkey.sock"
LOG = "valkey.log"


@dataclass(frozen=True)
class ValkeyFolder:
    """A data folder, by its real path."""

    path: Path

    def open_lock(self, name: str) -> int:
        """Return a descriptor of the lock file `valkey.NAME`, which closes when another program is executed."""
        return os.open(self.path / f"valkey.{name}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)

    @contextlib.contextmanager
    def held_start_lock(self, deadline: float) -> Iterator[None]:
        """Hold the `start` lock."""
        fd = self.open_lock("start")
        try:
            lock(fd, fcntl.LOCK_EX, deadline)
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # closing alone would leave it to a child forked meanwhile
            os.close(fd)

    def has_keeper(self) -> bool:
        """Tell whether a keeper lives."""
        fd = self.open_lock("keeper")
        try:
            return not try_lock(fd, fcntl.LOCK_SH)
        finally:
            os.close(fd)

    def has_users(self) -> bool:
        """Tell whether a user holds a share, as opposed to nobody, or a keeper on its way out."""
        fd = self.open_lock("users")
        try:
            return not try_lock(fd, fcntl.LOCK_EX) and try_lock(fd, fcntl.LOCK_SH)
        finally:
            os.close(fd)

    def claim_files(self) -> int:
        """Return a descriptor that holds `server`, after ending an orphan that held it; for the holder of `keeper`.

        Raises TimeoutError if the holder neither ends nor can be found.
        """
        fd = self.open_lock("server")
        for fatal in (signal.SIGTERM, signal.SIGKILL):
            if try_lock(fd, fcntl.LOCK_EX):
                return fd
            self._signal_listener(fatal)
            with contextlib.suppress(TimeoutError):
                lock(fd, fcntl.LOCK_EX, time.monotonic() + ORPHAN_TIMEOUT_S)
                return fd
        os.close(fd)
        raise TimeoutError("a server that does not answer on its socket holds the files; end it by hand")

    def _signal_listener(self, fatal: signal.Signals) -> None:
        """Signal the process that listens on the socket, as the kernel names it: a pid file may be out of date."""
        with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
            connection.settimeout(PING_TIMEOUT_S)
            connection.connect(str(self.reachable_socket()))
            if sys.platform == "darwin":
                pid = connection.getsockopt(0, 2)  # SOL_LOCAL, LOCAL_PEERPID
            else:
                pid = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED)  # its first number
            if pid > 0:  # 0 is a process of another container, and to os.kill our own group
                os.kill(pid, fatal)

    def server_answers(self) -> bool:
        """Tell whether the server answers PING, and is not still loading its data."""
        with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
            connection.settimeout(PING_TIMEOUT_S)
            connection.connect(str(self.reachable_socket()))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        return False

    def reachable_socket(self) -> Path:
        """Return the socket's path, by way of a short link in a private folder where the straight one is too long.

        The link's folder is ours alone, or it is an error: in a shared temp folder somebody else may have put a folder
        or a link in its place. Raises OSError.
        """
        if len(os.fsencode(self.path / SOCKET)) <= SOCKET_PATH_LIMIT_BYTES:
            return self.path / SOCKET
        private = self._link_folder()
        if len(os.fsencode(private / "data" / SOCKET)) > SOCKET_PATH_LIMIT_BYTES:
            raise OSError(f"the paths of {self.path} and of the temp folder are both too long for a socket")
        with contextlib.suppress(FileExistsError):
            private.mkdir(mode=0o700)
        status = private.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise PermissionError(f"{private} is not a private folder of this user")
        with contextlib.suppress(FileExistsError):
            (private / "data").symlink_to(self.path)
        return private / "data" / SOCKET

    def forget_link(self) -> None:
        """Remove the short link, if there is one; for a keeper that knows that there are no users."""
        with contextlib.suppress(OSError):
            (self._link_folder() / "data").unlink()
            self._link_folder().rmdir()

    def _link_folder(self) -> Path:
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:24]
        return Path(tempfile.gettempdir()) / f"llmweir-{os.geteuid()}-{digest}"

    def log_tail(self) -> str:
        """Return the end of the log of keeper and server, for an error message."""
        try:
            return (self.path / LOG).read_text(errors="replace")[-600:].strip()
        except OSError:
            return "(no log)"


def try_lock(fd: int, kind: int) -> bool:
    """Take a lock of `kind` (LOCK_SH, LOCK_EX) if it is free."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(fd: int, kind: int, deadline: float) -> None:
    """Take a lock of `kind` before `deadline` (of the monotonic clock) or raise TimeoutError."""
    while not try_lock(fd, kind):
        pause(deadline, "another process holds its lock for too long")


def pause(deadline: float, complaint: str) -> None:
    """Sleep for a turn of a waiting loop, or raise TimeoutError with `complaint` once `deadline` has passed."""
    if time.monotonic() > deadline:
        raise TimeoutError(complaint)
    time.sleep(POLL_S)
