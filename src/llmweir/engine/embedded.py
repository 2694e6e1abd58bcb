"""The bundled Valkey server: one per data folder, shared by every process that uses the folder, gone with the last.

Nobody here remembers or polls a process id. Each fact is a `flock` on a file of the folder, which the kernel drops
when its holder ends, however it ends:

    valkey.users    shared, by every user for as long as it lives
    valkey.start    exclusive, by the one user that is looking whether a keeper must be started
    valkey.keeper   exclusive, by the keeper for life
    valkey.server   exclusive, by the keeper *and* its server for life (the server inherits it as its stdin)

A user takes `users`, then `start`. If `keeper` is free it runs `embedded_keeper`, which detaches itself (into a session
of its own, so that a Ctrl-C at the terminal does not reach it) and runs the server; the user waits for an answer to
PING and lets go of `start`. Whoever comes second finds the keeper there and only pings.

The keeper starts the server again when it dies, and waits for `users` exclusively. When it gets that lock the last user
is gone: it stops the server and ends, still holding the lock, so a newcomer waits until the files are closed and then
starts afresh. It ignores SIGTERM and SIGINT: a service manager that signals all processes at once must not take the
store from users who drain.

A killed keeper leaves its server running, and the users go on with it. The next keeper sees `server` taken, stops that
orphan in good order and starts its own, because only a parent learns of a server's death without asking. So two servers
are never on the same files, even if the socket was deleted. `ensure_running` does that for a user that lives, and the
last `close` ends an orphan that no keeper is left to end.

A forked child shares its parent's lock and counts as a user until it ends or closes; so a lock on `users` is only ever
closed, not unlocked. The lock files are never deleted: a lock on a deleted file locks nobody out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

from llmweir.engine.embedded_folder import ValkeyFolder, lock, pause, try_lock
from llmweir.errors import StoreUnavailableError

START_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 20.0

Fsync = Literal["everysec", "always"]


class EmbeddedValkey:
    """A share in the bundled Valkey of a data folder; the server runs for as long as anybody holds one."""

    def __init__(self, folder: ValkeyFolder, users_fd: int, fsync: Fsync) -> None:
        self._folder = folder
        self._fsync = fsync
        self._users_fd: int | None = users_fd
        self.url = f"unix://{quote(str(folder.reachable_socket()))}"

    @classmethod
    def start(cls, data_dir: Path, *, fsync: Fsync = "everysec", timeout_s: float = START_TIMEOUT_S) -> EmbeddedValkey:
        """Join the server of `data_dir`, starting it if need be; blocks until it answers.

        With `fsync` "always" its append-only file is on the disk before it answers. Who starts the server decides.

        Raises StoreUnavailableError if there is no Valkey for this platform, the folder cannot be written, or the
        server does not answer in time.
        """
        with _explained(data_dir):
            folder = ValkeyFolder(data_dir.resolve())
            folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            users_fd = folder.open_lock("users")
            try:
                lock(users_fd, fcntl.LOCK_SH, time.monotonic() + timeout_s)
                valkey = cls(folder, users_fd, fsync)
                valkey.ensure_running(timeout_s=timeout_s)
            except BaseException:
                os.close(users_fd)
                raise
        return valkey

    def ensure_running(self, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once a keeper lives and its server answers; for a user that has lost the server.

        Raises StoreUnavailableError as `start` does.
        """
        deadline = time.monotonic() + timeout_s
        with _explained(self._folder.path), self._folder.held_start_lock(deadline):
            launched = False
            while not (self._folder.has_keeper() and self._folder.server_answers()):
                if not self._folder.has_keeper():
                    if launched:
                        raise ChildProcessError(f"its keeper ended; the log ends: {self._folder.log_tail()}")
                    _launch_keeper(self._folder.path, self._fsync)
                    launched = True
                pause(deadline, f"no answer in {timeout_s:g} s; the log ends: {self._folder.log_tail()}")

    def close(self, *, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Give up this share; the last one out waits until the server is gone, up to `timeout_s`."""
        if self._users_fd is None:
            return
        os.close(self._users_fd)
        self._users_fd = None
        with contextlib.suppress(OSError):
            _await_end(self._folder, time.monotonic() + timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _await_end(folder: ValkeyFolder, deadline: float) -> None:
    """Wait for the keeper to end, or take its place for a moment if it was killed: nobody else is left to do it."""
    keeper_fd = folder.open_lock("keeper")
    try:
        while not folder.has_users():
            if try_lock(keeper_fd, fcntl.LOCK_EX):
                os.close(folder.claim_files())
                return
            pause(deadline, "it is still there")
    finally:
        os.close(keeper_fd)


def _launch_keeper(path: Path, fsync: Fsync) -> None:
    # The keeper finds its modules where this process does, and none in the folder it works in.
    module_path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    launch = subprocess.run(  # noqa: S603 - our own module, no shell
        [sys.executable, "-m", "llmweir.engine.embedded_keeper", str(path), fsync],
        cwd=path,
        env={**os.environ, "PYTHONPATH": module_path, "PYTHONSAFEPATH": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        check=False,
    )
    if launch.returncode:
        lines = launch.stderr.decode(errors="replace").strip().splitlines()
        raise ChildProcessError(lines[-1] if lines else f"its keeper exited with {launch.returncode}")


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = "set redis_url to use a server of your own"
        raise StoreUnavailableError(f"the bundled Valkey does not run in {folder} ({error}); {advice}") from error
