"""uvicorn's HTTP protocol with an end to slow and endless request heads; bodies are bounded further in."""

from __future__ import annotations

import asyncio
import re
from asyncio import TimerHandle
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_H2C = re.compile(rb"\r\nupgrade:[ \t]*h2c[ \t]*(?=\r\n)", re.IGNORECASE)


class FrontDoorConfig(uvicorn.Config):
    """uvicorn's configuration with the bounds of a request's head, for servers that speak through `FrontDoor`."""

    def __init__(self, app: Any, *, max_head_bytes: int, head_timeout_s: float, **options: Any) -> None:
        self.max_head_bytes = max_head_bytes
        self.head_timeout_s = head_timeout_s
        super().__init__(app, http="llmweir.cli.front_door:FrontDoor", **options)


class FrontDoor(HttpToolsProtocol):
    """A connection whose request heads are bounded in bytes and time, see `FrontDoorConfig`.

    A head too large is answered 431, one too slow 408, and the connection is closed; so is one that never says a word,
    and one that goes on with a body whose request was answered already.
    """

    def __init__(self, config: FrontDoorConfig, *rest: Any, **named: Any) -> None:
        super().__init__(config, *rest, **named)
        self._max_head_bytes = config.max_head_bytes
        self._head_timeout_s = config.head_timeout_s
        self._in_head = True
        self._in_body = False
        self._head_bytes = 0
        self._patience: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        """Starts the clock of the first head: a connection that says nothing is closed too."""
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses what came; what it leaves of a head unfinished is counted and timed."""
        if len(data) > self._max_head_bytes and self._in_head and b"\r\n\r\n" not in data[: self._max_head_bytes]:
            self._refuse(_TOO_LARGE)
            return
        if b"h2c" in data and not self._in_body:
            data = _without_h2c(data)
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > self._max_head_bytes:
                self._refuse(_TOO_LARGE)
            else:
                self._start_clock()
        elif self._in_body and self.cycle.response_complete:
            self._start_clock()

    def on_message_begin(self) -> None:
        """A head begins."""
        self._in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A head is complete."""
        self._in_head, self._in_body = False, True
        if self._patience is not None:
            self._stop_clock()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A body is complete."""
        self._in_body = False
        if self._patience is not None:
            self._stop_clock()
        super().on_message_complete()

    def _start_clock(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(self._head_timeout_s, self._lose_patience)

    def _stop_clock(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _lose_patience(self) -> None:
        self._patience = None
        self._refuse(_TOO_SLOW if self._in_head and self._head_bytes else b"")

    def _refuse(self, answer: bytes) -> None:
        # An answer that is still on its way to a pipelining client must not get this one in its middle.
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, whatever its annotation says
        if answer and (cycle is None or cycle.response_complete):
            self.transport.write(answer)
        self.transport.close()


def _without_h2c(data: bytes) -> bytes:
    """Takes the offer of HTTP/2 out of a head: Java's clients make it, and httptools would then drop their body."""
    head, end, rest = data.partition(b"\r\n\r\n")
    return _H2C.sub(b"", head + end) + rest
