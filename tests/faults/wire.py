"""A TCP proxy that stands for the network between the workers and Redis, and can do to it what networks do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from typing import Literal, cast

_READ_BYTES = 1 << 16
_RESET = struct.pack("ii", 1, 0)  # linger for 0 s: closing sends a reset


class Wire:
    """Passes bytes on between whoever connects to `port` and a port of this host.

    `delay_s` is added to each way. `there` and `back` let bytes through to Redis and from it; what is held while they
    are shut comes through when they open; `strand` shuts both for the connections that stand, not for those to come.
    `drop_reply_to` names a command by bytes of it: the next that has them is
    passed on, its reply is swallowed and the connection reset.
    """

    def __init__(self, target_port: int) -> None:
        self.delay_s = 0.0
        self.there, self.back = _open_way(), _open_way()
        self.drop_reply_to = b""
        self.dropped = 0
        self.port = 0
        self._target_port = target_port
        self._stranded: list[asyncio.Event] = []
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._sockets: set[socket.socket] = set()

    @property
    def url(self) -> str:
        """Where the workers find Redis."""
        return f"redis://127.0.0.1:{self.port}"

    async def accept(self) -> None:
        """Takes new connections."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Refuses new connections; those that stand go on."""
        assert self._server is not None
        self._server.close()

    def reset(self) -> None:
        """Resets all connections, towards the workers and towards Redis."""
        for peer in self._sockets:
            _make_reset(peer)
        for connection in self._connections:
            connection.cancel()

    def shut(self, *ways: Literal["there", "back"]) -> None:
        """Holds what goes these ways."""
        for way in ways:
            (self.there if way == "there" else self.back).clear()

    def strand(self) -> None:
        """Holds what goes over the connections that stand now; new ones are let through."""
        self._stranded += [self.there, self.back]
        self.shut("there", "back")
        self.there, self.back = _open_way(), _open_way()

    def open(self) -> None:
        """Lets everything through again, what was held first."""
        for way in (*self._stranded, self.there, self.back):
            way.set()

    async def aclose(self) -> None:
        """Ends everything."""
        self.refuse()
        self.reset()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            return
        finally:
            writer.transport.abort()
            self._connections.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_redis = await asyncio.open_connection("127.0.0.1", self._target_port)
        here = [_socket_of(writer), _socket_of(to_redis[1])]
        self._sockets.update(here)
        swallows = asyncio.Event()
        ways = [
            asyncio.create_task(self._there(reader, to_redis[1], swallows)),
            asyncio.create_task(self._back(to_redis[0], writer, swallows)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            self._sockets.difference_update(here)
            to_redis[1].transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _there(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, swallows: asyncio.Event) -> None:
        way = self.there
        while data := await reader.read(_READ_BYTES):
            if self.drop_reply_to and self.drop_reply_to in data:
                self.drop_reply_to = b""
                swallows.set()
            await self._pass(data, writer, way)
        await way.wait()
        writer.write_eof()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, swallows: asyncio.Event) -> None:
        way = self.back
        while data := await reader.read(_READ_BYTES):
            if swallows.is_set():
                self.dropped += 1
                _make_reset(_socket_of(writer))
                raise ConnectionResetError
            await self._pass(data, writer, way)
        raise ConnectionResetError

    async def _pass(self, data: bytes, writer: asyncio.StreamWriter, way: asyncio.Event) -> None:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        await way.wait()
        writer.write(data)
        await writer.drain()


@contextlib.asynccontextmanager
async def wire_to(target_port: int) -> AsyncIterator[Wire]:
    """Lays a wire to a port of this host."""
    wire = Wire(target_port)
    await wire.accept()
    try:
        yield wire
    finally:
        await wire.aclose()


def _open_way() -> asyncio.Event:
    way = asyncio.Event()
    way.set()
    return way


def _socket_of(writer: asyncio.StreamWriter) -> socket.socket:
    return cast(socket.socket, writer.get_extra_info("socket"))  # asyncio's own stand-in for one


def _make_reset(peer: socket.socket) -> None:
    with contextlib.suppress(OSError):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
