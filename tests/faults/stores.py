"""Redis as a process of its own, on a TCP port, with an append-only file: to be killed, paused and started again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest
import redis
from tests.faults.waiting import until

OPTIONS = {"save": "", "appendonly": "yes", "appendfsync": "everysec", "hash-max-listpack-value": "128"}


class RedisProcess:
    """One Redis server in a folder; `options` and `environment` are of its next start."""

    def __init__(self, program: str, folder: Path) -> None:
        self.options: dict[str, str] = dict(OPTIONS)
        self.environment: Mapping[str, str] = {}
        self.port = free_port()
        self.client = redis.Redis(port=self.port, socket_timeout=10.0)
        folder.mkdir()
        self._program = program
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Starts it, from its append-only file if there is one, and waits until it answers."""
        self._launch()
        await until(self.answers, "Redis answers")

    def _launch(self) -> None:
        options = [part for name, value in self.options.items() for part in (f"--{name}", value)]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "--port", str(self.port), "--bind", "127.0.0.1", *options],
                cwd=self._folder, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **self.environment},
            )  # fmt: skip

    def answers(self) -> bool:
        """Whether it answers and has loaded its data."""
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "redis.log").read_text()[-2000:]
        with contextlib.suppress(redis.RedisError):
            return bool(self.client.ping())
        return False

    def kill(self) -> None:
        """Kills it with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.client.close()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops it from answering, without closing anything."""
        assert self._process is not None
        pid = self._process.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@contextlib.asynccontextmanager
async def redis_process(folder: Path, program: str = "redis-server", **environment: str) -> AsyncIterator[RedisProcess]:
    """Runs this machine's Redis; skips the test where there is none."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"no {program} on this machine")
    server = RedisProcess(found, folder)
    server.environment = environment
    try:
        await server.start()
        yield server
    finally:
        server.kill()
