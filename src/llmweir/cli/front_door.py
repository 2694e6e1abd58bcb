"""uvicorn's HTTP protocol with bounds on what a connection may send; bodies are bounded further in."""

from __future__ import annotations

import asyncio
import re
from asyncio import TimerHandle
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 31\r\n"
    b"connection: close\r\n\r\nInvalid HTTP request received.\n"
)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_MOST_HEADERS: Final = 256
_MOST_PIPELINED: Final = 16
_LARGEST_READ_BYTES: Final = 256 * 1024
_HIGH_WATER_BYTES: Final = 64 * 1024
_KNOCKS_S: Final = (0.05, 0.5, 2.0)
"""Some clients take no more than five interim answers."""
_H2C = re.compile(rb"\r\nupgrade:[ \t]*h2c[ \t]*(?=\r\n)", re.IGNORECASE)


class _RefusedError(Exception):
    """Ends the parsing of a request that is refused."""


class _NoTrailers(list[tuple[bytes, bytes]]):
    """Where the headers behind a chunked body go: nowhere, since they are not to be taken for those before it."""

    def append(self, header: tuple[bytes, bytes]) -> None:
        """Drops a header."""


_NO_TRAILERS: Final = _NoTrailers()


class _Deaf:
    """Stands in for the parser of a connection from which nothing is read any more."""

    def feed_data(self, data: bytes) -> None:
        """Drops what came."""


_DEAF: Final = _Deaf()


class FrontDoorConfig(uvicorn.Config):
    """uvicorn's configuration with the bounds of a request's head, for servers that speak through `FrontDoor`."""

    def __init__(self, app: Any, *, max_head_bytes: int, head_timeout_s: float, **options: Any) -> None:
        self.max_head_bytes = max_head_bytes
        self.head_timeout_s = head_timeout_s
        super().__init__(app, http="llmweir.cli.front_door:FrontDoor", **options)


class FrontDoor(HttpToolsProtocol):
    """A connection whose request heads are bounded in bytes and time, see `FrontDoorConfig`.

    A head too large, in bytes or in headers, is answered 431, one too slow 408, and the connection is closed; so is one
    that never says a word, one that goes on with a body whose request was answered already, one that sends a chunked
    body's frame without its content, and one that asks for many answers while it reads none. A client that ends its own
    side only still gets its answer.
    """

    def __init__(self, config: FrontDoorConfig, *rest: Any, **named: Any) -> None:
        super().__init__(config, *rest, **named)
        self._max_head_bytes = config.max_head_bytes
        self._head_timeout_s = config.head_timeout_s
        self._in_head = True
        self._in_body = False
        self._head_bytes = 0
        self._frame_bytes = 0
        self._refusal = _BAD_REQUEST
        self._unanswered: tuple[RequestResponseCycle, ...] = ()
        self._patience: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        """Starts the clock of the first head: a connection that says nothing is closed too."""
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clocks, and tells all requests under way; uvicorn tells only the one that came last."""
        self._stop_clock()
        self._unset_keepalive_if_required()
        for cycle in self._unanswered:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # to return nothing is to return False
        """Keeps a connection whose client has ended its side after a request, in the hope that it waits for the answer.

        A client that is gone looks the same, until something is sent to it: it is knocked at. Once the answer has
        begun, it is gone.
        """
        cycle: RequestResponseCycle | None = self.cycle
        is_asking = cycle is not None and not self._in_head and not self._in_body and not self.pipeline
        if not is_asking or self.cycle.response_started or self.cycle.scope["http_version"] != "1.1":
            return False
        self.cycle.keep_alive = False  # it can ask no more
        self._knock(_KNOCKS_S)
        return True

    def _knock(self, pauses_s: tuple[float, ...]) -> None:
        """Sends interim answers: the first makes the system of a client that is gone say so, the next one finds out."""
        if not self.cycle.response_started and not self.transport.is_closing():
            self.transport.write(_CONTINUE)
            if pauses_s:
                self.loop.call_later(pauses_s[0], self._knock, pauses_s[1:])

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
        elif self._in_body:
            if self.cycle.response_complete:
                self._start_clock()
            self._frame_bytes += len(data)
            if self._frame_bytes > self._max_head_bytes:
                self._refuse(_TOO_LARGE)

    def on_message_begin(self) -> None:
        """A head begins."""
        self._in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A head is complete."""
        if len(self.headers) > _MOST_HEADERS:
            self._refusal = _TOO_LARGE
            raise _RefusedError
        self._in_head, self._in_body, self._frame_bytes = False, True, 0
        if self._patience is not None:
            self._stop_clock()
        before: RequestResponseCycle = self.cycle
        super().on_headers_complete()
        self.headers = _NO_TRAILERS
        if self.pipeline:
            self._queue_behind(before)

    def on_body(self, body: bytes) -> None:
        """Takes a piece of a body, as uvicorn does; what comes between the pieces is counted from here."""
        self._frame_bytes = -_LARGEST_READ_BYTES  # more than may follow it in the same read
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > _HIGH_WATER_BYTES:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """A body is complete."""
        self._in_body = False
        if self._patience is not None:
            self._stop_clock()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the message is ours
        """Refuses what cannot be parsed, or was not to be parsed any further."""
        self._refuse(self._refusal)

    def _queue_behind(self, before: RequestResponseCycle) -> None:
        """Notes a request that is under way while the next one is here already; too many at once are cut off."""
        running = [cycle for cycle in self._unanswered if not cycle.response_complete]
        self._unanswered = (*running, before)
        if len(self.pipeline) > _MOST_PIPELINED:
            raise _RefusedError

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
        """Answers what is being received, if that cannot get into another answer's way, and closes.

        - Nothing is under way: it is answered.
        - Its own request is under way, in the middle of its body: answered, unless an answer has begun.
        - An earlier request is under way: that one is answered, nothing is read any more, and its answer is the last.
        """
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, whatever its annotation says
        if cycle is not None and not cycle.response_complete:
            if not self._in_body and not self.pipeline:
                cycle.keep_alive = False
                self.parser = _DEAF  # type: ignore[assignment]  # it is only fed from here on
                return
            if cycle.response_started or self.pipeline:
                answer = b""
            cycle.disconnected = True
            cycle.message_event.set()
        if answer:
            self.transport.write(answer)
        self.transport.close()


def _without_h2c(data: bytes) -> bytes:
    """Takes the offer of HTTP/2 out of a head: Java's clients make it, and httptools would then drop their body."""
    head, end, rest = data.partition(b"\r\n\r\n")
    return _H2C.sub(b"", head + end) + rest
