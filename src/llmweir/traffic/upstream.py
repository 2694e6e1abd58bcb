"""The HTTP client behind the proxy: aiohttp, made to send bytes as they came and to know a stale connection.

aiohttp is the cheapest of the well-kept clients by far (`benchmarks/http_clients.py`). Three of its habits do not
fit a proxy and are changed here, by its own extension points: it adds headers, it writes header text as UTF-8, and
after a dead kept-alive connection it retries idempotent methods only, although no byte of an answer was seen.
"""

from __future__ import annotations

import functools
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
READ_BUFFER_BYTES = 1 << 16
"""Reading from the upstream pauses when twice this is waiting to be sent on."""


class _Protocol(ResponseHandler):
    """A connection that knows whether it served before, and whether anything came back since."""

    served = False
    reused = False
    received = False

    def data_received(self, data: bytes) -> None:
        self.received = True
        super().data_received(data)

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
        """Whether the upstream cannot have begun to answer, and the body is still here."""
        is_stale = self.protocol is not None and self.protocol.reused and not self.protocol.received
        return is_stale and not (self.body and self.body.consumed)

    def _is_ascii(self) -> bool:
        return "".join(self.headers.values()).isascii() and self.url.raw_path_qs.isascii()


class _Connector(aiohttp.TCPConnector):
    """A pool without an upper limit that tells each request what connection it got."""

    def __init__(self, tls: ssl.SSLContext | bool) -> None:
        super().__init__(limit=0, keepalive_timeout=KEEPALIVE_S, ssl=tls)
        self._factory = cast(Any, functools.partial(_Protocol, loop=self._loop))

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - the signature is aiohttp's
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        protocol = connection.protocol
        if isinstance(protocol, _Protocol) and isinstance(req, _Request):
            protocol.reused, protocol.served, protocol.received = protocol.served, True, False
            req.protocol = protocol
        return connection


async def _retry_stale(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Sends a request once more, on a new connection, when a reused one was closed before any byte of an answer.

    The upstream closed it while it was idle (RFC 9112 9.3.1): the request was not looked at. A body that was
    streamed is gone and cannot be sent again.
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
