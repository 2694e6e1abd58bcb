"""The one matrix of backends, and the settable clock that all of them are driven by."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from tests.servers import fake_server, redis_server, valkey_server

from llmweir.engine import scripts
from llmweir.engine.any_link import AnyLink

BACKENDS = ("fakeredis", "valkey", "redis")
REAL_SERVERS = ("valkey", "redis")

on_real_servers = pytest.mark.parametrize("backend", REAL_SERVERS, indirect=True)
"""For a test that fakeredis cannot take part in, or is too slow for."""

on_valkey = pytest.mark.parametrize("backend", ["valkey"], indirect=True)
"""For a test about the Python on this side of the wire, where the kind of server makes no difference."""


def serve(backend: str, folder: Path) -> AbstractContextManager[str]:
    """Run a backend of the matrix; yields its URL."""
    if backend == "fakeredis":
        return fake_server()
    return valkey_server() if backend == "valkey" else redis_server(folder)


async def load_all_scripts(link: AnyLink) -> None:
    """Put every script into the server's cache."""
    names = [path.stem for path in (Path(scripts.__file__).parent / "lua").glob("*.lua")]
    await asyncio.gather(*(link.call("SCRIPT", "LOAD", scripts.load(name).source) for name in names))


class Clock:
    """A clock in ms since 1970 UTC that moves only when it is told to."""

    def __init__(self, now_ms: int = 1_800_000_000_000) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, *, ms: int = 0, seconds: int = 0) -> None:
        self.now_ms += ms + 1_000 * seconds
