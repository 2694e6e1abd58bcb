"""The HTTP client behind the proxy: aiohttp, made to send bytes as they came and to know a stale connection.

aiohttp is the cheapest of the well-kept clients by far (`benchmarks/http_clients.py`). Four of its habits do not
fit a proxy and are changed here, by its own extension points: it adds headers, it writes header text as UTF-8, it
takes what an idle connection has said for the next answer, and it repeats a request that was looked at.
"""

from __future__ import annotations

import functools
import select
import ssl
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey

if TYPE_CHECKING:
    import asyncio

    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

KEEPALIVE_S = 4.0
"""Idle connections are closed after this: below the keep-alive of common servers (uvicorn's is 5 s)."""

CONNECT_TIMEOUT_S = 10.0
MAX_ANSWER_HEADER_BYTES = 1 << 17
MAX_ANSWER_HEADERS = 1000
REPEATABLE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
READ_BUFFER_BYTES = 1 << 16
"""Reading from the upstream pauses when twice this is waiting to be sent on."""


class _Protocol(ResponseHandler):
    """A connection that knows whether it served before, and whether anything came back since."""

    served = False
    reused = False
    received = False
    _events: select.poll | None = None

    def data_received(self, data: bytes) -> None:
        self.received = True
        super().data_received(data)

    def is_silent(self) -> bool:
        """Whether nothing has come over an idle connection: neither bytes that nobody asked for nor its end.

        What the event loop has not seen yet is looked for too.
        """
        if self.should_close or self.transport is None:
            return False
        if self._events is None:
            self._events = select.poll()
            self._events.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not self._events.poll(0)

    def close(self) -> None:
        # Not drained: an upload that the upstream does not take would keep the connection.
        self.abort()


class _Latin1Head:
    """Stands in for a transport until a request's head is written, and writes it as the bytes it came in.

    The header text holds one character a byte; aiohttp encodes it as UTF-8, this takes that back.
    """

    def __init__(self, protocol: ResponseHandler, transport: asyncio.Transport) -> None:
        self._protocol = protocol
        self._transport = transport

    def write(self, data: bytes) -> None:
        self._protocol.transport = self._transport
        head, end, body = data.partition(b"\r\n\r\n")
        self._transport.write(head.decode().encode("latin-1") + end + body)

    def writelines(self, chunks: Iterable[bytes]) -> None:
        self.write(b"".join(chunks))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Request(aiohttp.ClientRequest):
    """A request without headers of the library's own, whose header text is latin-1."""

    protocol: _Protocol | None = None
    needs_new_connection = False

    @property
    def connection_key(self) -> ConnectionKey:
        key = super().connection_key
        # A key of its own finds nothing in the pool.
        return key._replace(proxy_headers_hash=id(self)) if self.needs_new_connection else key

    def update_auto_headers(self, skip_auto_headers: Iterable[str] | None) -> None:
        self._skip_auto_headers = cast(Any, skip_auto_headers)

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        protocol = conn.protocol
        if protocol is not None and protocol.transport is not None and not self._is_ascii():
            protocol.transport = cast(Any, _Latin1Head(protocol, cast(Any, protocol.transport)))
        return await super().send(conn)

    def may_retry(self) -> bool:
        """Whether a kept connection has ended before any byte of an answer, and doing it twice is as good as once."""
        is_stale = self.protocol is not None and self.protocol.reused and not self.protocol.received
        return is_stale and self.method in REPEATABLE_METHODS and not (self.body and self.body.consumed)

    def _is_ascii(self) -> bool:
        return "".join(self.headers.values()).isascii() and self.url.raw_path_qs.isascii()


class _Connector(aiohttp.TCPConnector):
    """A pool without an upper limit that tells each request what connection it got, and keeps none that has spoken."""

    def __init__(self, tls: ssl.SSLContext | bool) -> None:
        super().__init__(limit=0, keepalive_timeout=KEEPALIVE_S, ssl=tls)
        self._factory = cast(Any, functools.partial(_Protocol, loop=self._loop))

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - the signature is aiohttp's
    ) -> Connection:
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            if not isinstance(protocol, _Protocol) or not isinstance(req, _Request):
                return connection
            if protocol.served and not protocol.is_silent():
                connection.close()
                continue
            protocol.reused, protocol.served, protocol.received = protocol.served, True, False
            req.protocol = protocol
            return connection


async def _retry_stale(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Sends a GET once more, on a new connection, when a reused one was closed before any byte of an answer.

    Most likely the upstream closed it while it was idle, but nobody can tell (RFC 9110 9.2.2): a POST may have been
    carried out, and a model asked twice is paid twice, so its caller gets a 502. A connection that has ended before
    the request is never taken, see `_Protocol.is_silent`.
    """
    try:
        return await handler(request)
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
        if (
            isinstance(error, aiohttp.ClientConnectorError)
            or not isinstance(request, _Request)
            or not request.may_retry()
        ):
            raise
        request.needs_new_connection = True
        return await handler(request)


def open_session(tls: ssl.SSLContext | bool = True) -> aiohttp.ClientSession:
    """Makes the pool; must be called in the running event loop that will use it."""
    session = aiohttp.ClientSession(
        connector=_Connector(tls),
        request_class=_Request,
        middlewares=(_retry_stale,),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        skip_auto_headers=("Content-Type",),
        auto_decompress=False,
        read_bufsize=READ_BUFFER_BYTES,
        max_line_size=MAX_ANSWER_HEADER_BYTES,
        max_field_size=MAX_ANSWER_HEADER_BYTES,
        max_headers=MAX_ANSWER_HEADERS,
    )
    session._retry_connection = False  # noqa: SLF001 - it would repeat a GET that was looked at
    return session


def is_waited_for(content: aiohttp.StreamReader) -> bool:
    """Whether somebody waits for the next bytes of an answer, so that a silence is the upstream's."""
    return content._waiter is not None  # noqa: SLF001 - the one place where aiohttp says so
