"""What all ways to Redis have in common: calls that are packed, sent in one write a turn, and answered in order."""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import hiredis

from llmweir.engine.scripts import Script
from llmweir.engine.wire import Receiver, Reply, ReplyError, ignore

Argument: TypeAlias = "bytes | str | int"

_OF_SCRIPT = "ERR Error running script"
_CANNOT_NOW = frozenset(
    ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY", "TRYAGAIN")
)


def code_of(error: ReplyError) -> str:
    """The first word of an error of Redis; up to Redis 6.2 a script's error has it inside another."""
    text = str(error)
    if text.startswith(_OF_SCRIPT):
        inner = re.search(r": -([A-Z]+) ", text)
        return inner[1] if inner is not None else "ERR"
    return text.partition(" ")[0]


def says_unavailable(error: BaseException) -> bool:
    """Whether an error means that Redis is away: it does not answer, or answers that it cannot serve anybody now."""
    return not isinstance(error, ReplyError) or code_of(error) in _CANNOT_NOW


class AnyLink(ABC):
    """A way to Redis that all callers share: `Link`, one connection, or `ClusterLink`, one for each master.

    `on_up` is called each time a connection stands.
    """

    def __init__(self) -> None:
        self.on_up: Callable[[], None] | None = None

    @property
    @abstractmethod
    def is_up(self) -> bool:
        """Whether everything stands and answers in time."""

    @property
    @abstractmethod
    def is_down(self) -> bool:
        """Whether every call fails at once and never leaves."""

    @property
    def masters(self) -> tuple[AnyLink, ...]:
        """The links to each server that holds keys of its own; known once a call was answered."""
        return (self,)

    @abstractmethod
    def post(self, packed: bytes, receiver: Receiver) -> None:
        """Sends a packed command whose reply, or error, `receiver` is handed as soon as it is here."""

    @abstractmethod
    async def ready(self) -> None:
        """Waits until Redis answers; raises StoreUnavailableError when it does not in time."""

    @abstractmethod
    async def aclose(self) -> None:
        """Closes all connections; whatever waits fails."""

    def call(self, *command: Argument) -> asyncio.Future[Reply]:
        """Sends a command and returns the future of its reply; it fails with StoreUnavailableError or ReplyError."""
        return self.send(hiredis.pack_command(command))  # type: ignore[arg-type]  # its stub means one item

    def send(self, packed: bytes) -> asyncio.Future[Reply]:
        """Sends a command that is packed for the wire already, as `call` does."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.post(packed, future)
        return future

    async def run(self, script: Script, *keys_and_arguments: Argument, keys: int) -> Reply:
        """Runs a script, and heals a script cache that was flushed."""
        packed = hiredis.pack_command((b"EVALSHA", script.sha, keys, *keys_and_arguments))  # type: ignore[arg-type]  # as above
        return await self.run_packed(script, packed)

    async def run_packed(self, script: Script, packed: bytes) -> Reply:
        """Runs a script whose call is packed already, and heals a script cache that was flushed."""
        try:
            return await self.send(packed)
        except ReplyError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
        return await self.load_and_send(script, packed)

    def load_and_send(self, script: Script, packed: bytes) -> asyncio.Future[Reply]:
        """Fills a script cache that was flushed, and runs the script."""
        self.call(b"SCRIPT", b"LOAD", script.source).add_done_callback(ignore)
        return self.send(packed)
