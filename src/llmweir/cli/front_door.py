"""uvicorn's HTTP protocol with an end to slow and endless request heads; bodies are bounded further in."""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class FrontDoorConfig(uvicorn.Config):
    """uvicorn's configuration with the bounds of a request's head, for servers that speak through `FrontDoor`."""

    def __init__(self, app: Any, *, max_head_bytes: int, head_timeout_s: float, **options: Any) -> None:
        self.max_head_bytes = max_head_bytes
        self.head_timeout_s = head_timeout_s
        super().__init__(app, http="llmweir.cli.front_door:FrontDoor", **options)


class FrontDoor(HttpToolsProtocol):
    """A connection whose request heads are bounded in bytes and time, see `FrontDoorConfig`.

    A head too large is answered 431, one too slow 408, and the connection is closed; so is one that never says a word.
    """

    def __init__(self, config: FrontDoorConfig, *rest: Any, **named: Any) -> None:
        super().__init__(config, *rest, **named)
        self._max_head_bytes = config.max_head_bytes
        self._head_timeout_s = config.head_timeout_s
        self._in_head = True
        self._head_bytes = 0
        self._patience: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock of the first head: a connection that says nothing is closed too."""
        super().connection_made(transport)
        self._patience = self.loop.call_later(self._head_timeout_s, self._lose_patience)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses what came; what it leaves of a head unfinished is counted and timed."""
        if len(data) > self._max_head_bytes and self._in_head and b"\r\n\r\n" not in data[: self._max_head_bytes]:
            self._refuse(_TOO_LARGE)
            return
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > self._max_head_bytes:
                self._refuse(_TOO_LARGE)
            elif self._patience is None:
                self._patience = self.loop.call_later(self._head_timeout_s, self._lose_patience)

    def on_message_begin(self) -> None:
        """A head begins."""
        self._in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A head is complete."""
        self._in_head = False
        if self._patience is not None:
            self._stop_clock()
        super().on_headers_complete()

    def _stop_clock(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _lose_patience(self) -> None:
        self._patience = None
        self._refuse(_TOO_SLOW if self._head_bytes else b"")

    def _refuse(self, answer: bytes) -> None:
        # An answer that is still on its way to a pipelining client must not get this one in its middle.
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, whatever its annotation says
        if answer and (cycle is None or cycle.response_complete):
            self.transport.write(answer)
        self.transport.close()
