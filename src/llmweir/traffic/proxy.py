"""The streaming reverse proxy: a plain ASGI app that knows an upstream, and nothing of limits."""

from __future__ import annotations

import asyncio
import io
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, Self
from urllib.parse import quote, urlsplit

import aiohttp
from yarl import URL

from llmweir.errors import InvalidValueError, LlmweirError
from llmweir.traffic.forwarding import HeaderRules, answer_headers, without_key_parameter
from llmweir.traffic.upstream import is_waited_for, open_session

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

DEFAULT_UPSTREAM_TIMEOUT_S = 600.0
"""A model may think for minutes before the first byte."""

WATCH_AFTER_S = 0.01
"""A client that leaves is noticed from here on; a request younger than this is as good as answered."""

LARGE_BODY_BYTES = 1 << 20
"""Bodies above this go out in pieces, so that the event loop is not held up."""


class UpstreamUnavailableError(LlmweirError):
    """The upstream gave no answer: `status` is 502 (unreachable, broke off) or 504 (took too long)."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"The upstream is unavailable: {reason}.")
        self.status = status
        self.reason = reason


class UpstreamBrokenError(LlmweirError):
    """The upstream broke off in the middle of an answer that has already begun to reach the client.

    It must reach the server, which then closes the client's connection: the only honest end of half an answer.
    """


class ReverseProxy:
    """Forwards every HTTP request to `upstream` and streams the answer back, byte for byte.

    `upstream` is a base URL whose path prefix is kept. `upstream_api_key` is sent in the header that the path's
    provider reads. The caller's own key (any of the usual headers, `caller_key_header`, the `key` parameter) stays
    here unless `forward_caller_key`. `upstream_timeout_s` bounds the wait for the head of an answer, and each silence
    within the answer, not the answer. `tls` is an `SSLContext`, or False to accept any certificate.

    Raises `UpstreamUnavailableError` before an answer has started and `UpstreamBrokenError` after. Connections open
    with the first request, in the loop that runs it; they close with `aclose()`, `async with` or a lifespan's end.
    """

    def __init__(
        self,
        upstream: str,
        *,
        upstream_api_key: str | None = None,
        forward_caller_key: bool = False,
        caller_key_header: str | None = None,
        upstream_timeout_s: float = DEFAULT_UPSTREAM_TIMEOUT_S,
        tls: ssl.SSLContext | bool = True,
    ) -> None:
        self._scheme, self._host, self._port, self._prefix = _read_upstream(upstream)
        self._rules = HeaderRules(upstream_api_key, forward_caller_key, caller_key_header)
        self._forward_caller_key = forward_caller_key
        self._timeout_s = upstream_timeout_s
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes all connections; a later request opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            exchange = _Exchange(receive, send, self._timeout_s)
            await exchange.run(lambda body: self._request(scope, body))

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            kind = (await receive())["type"]
            if kind == "lifespan.shutdown":
                await self.aclose()
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return

    async def _request(self, scope: Scope, body: bytes | AsyncIterator[bytes]) -> aiohttp.ClientResponse:
        """Sends one request and returns the upstream's answer as soon as its headers are here."""
        if self._session is None:
            self._session = open_session(self._tls)
        # Bytes get their own length, since the gate may have changed them; a stream keeps the one declared.
        headers = self._rules.request_headers(scope, keep_length=not isinstance(body, bytes))
        data: Any = body or None
        if isinstance(body, bytes) and len(body) > LARGE_BODY_BYTES:
            data = io.BytesIO(body)
        url = self._url(scope)
        return await self._session.request(scope["method"], url, headers=headers, data=data, allow_redirects=False)

    def _url(self, scope: Scope) -> URL:
        path = (scope.get("raw_path") or quote(scope["path"]).encode()).decode("latin-1")
        query: bytes = scope["query_string"]
        if not self._forward_caller_key:
            query = without_key_parameter(query)
        # A target that is not a path ("*", "@host") must not run into the authority.
        path = path if path.startswith("/") else "/" + path
        return URL.build(
            scheme=self._scheme,
            host=self._host,
            port=self._port,
            path=self._prefix + path,
            query_string=query.decode("latin-1"),
            encoded=True,
        )


Ask = Callable[[bytes | AsyncIterator[bytes]], Awaitable[aiohttp.ClientResponse]]


class _Exchange:
    """One request on its way and its answer on the way back.

    One clock serves all ends of patience: it runs until the answer's headers are here, and it is set to now when the
    client leaves or the answer falls silent, which cancels whatever the exchange waits for.
    """

    def __init__(self, receive: Receive, send: Send, timeout_s: float) -> None:
        self._receive = receive
        self._send = send
        self._timeout_s = timeout_s
        self._clock = asyncio.timeout(timeout_s)
        self._client_left = False
        self._answer: aiohttp.ClientResponse | None = None
        self._heard_bytes = -1
        self._watch_timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def run(self, ask: Ask) -> None:
        """Returns when the answer is delivered or the client has left."""
        try:
            async with self._clock:
                try:
                    await self._forward(ask)
                finally:
                    self._stop_watching()
        except (TimeoutError, LlmweirError) as error:
            if self._client_left:
                return
            if isinstance(error, LlmweirError) or not self._clock.expired():
                raise
            if self._answer is not None:
                raise UpstreamBrokenError("The upstream fell silent in the middle of its answer.") from error
            raise UpstreamUnavailableError(504, "no answer in time") from error

    async def _forward(self, ask: Ask) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            return
        body: bytes | AsyncIterator[bytes]
        if message.get("more_body"):
            body = self._body_from(message)
        else:
            body = message.get("body", b"")
            self._watch_soon()
        self._answer = answer = await _asked(ask(body))
        self._clock.reschedule(None)
        try:
            await self._relay(answer)
        finally:
            # Drops the connection, unless the answer is complete and has given it back already.
            answer.close()

    async def _relay(self, answer: aiohttp.ClientResponse) -> None:
        headers = answer_headers(answer.status, answer.raw_headers)
        await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
        content, is_last = answer.content, False
        while not is_last:
            try:
                chunk = await content.readany()
            except (aiohttp.ClientError, OSError) as error:
                raise UpstreamBrokenError("The upstream broke off in the middle of its answer.") from error
            is_last = content.at_eof()
            await self._send({"type": "http.response.body", "body": chunk, "more_body": not is_last})

    async def _body_from(self, message: Message) -> AsyncIterator[bytes]:
        """The request's body piece by piece: the next one is received once this one is on its way."""
        while message["type"] != "http.disconnect":
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body"):
                self._watch_soon()
                return
            message = await self._receive()
        self._leave()
        raise ConnectionResetError("The client left before its request was complete.")

    def _watch_soon(self) -> None:
        # A task for each request costs as much as its headers do; most quick answers need none.
        self._watch_timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._watch)

    def _watch(self) -> None:
        self._watcher = asyncio.create_task(self._until_client_leaves())
        self._watch_timer = asyncio.get_running_loop().call_later(self._timeout_s, self._listen)

    def _listen(self) -> None:
        """Ends an answer that has said nothing since the last time, unless it is the client who does not read on.

        Looking now and then costs a stream nothing for each of its chunks; a silence may last twice as long for it.
        """
        content = self._answer.content if self._answer is not None else None
        if content is not None and content.total_bytes == self._heard_bytes and is_waited_for(content):
            self._expire()
            return
        self._heard_bytes = content.total_bytes if content is not None else -1
        self._watch_timer = asyncio.get_running_loop().call_later(self._timeout_s, self._listen)

    def _stop_watching(self) -> None:
        if self._watch_timer is not None:
            self._watch_timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    async def _until_client_leaves(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        self._client_left = True
        self._expire()

    def _expire(self) -> None:
        if not self._clock.expired():
            self._clock.reschedule(asyncio.get_running_loop().time())


async def _asked(request: Awaitable[aiohttp.ClientResponse]) -> aiohttp.ClientResponse:
    """The answer, or its failure in llmweir's words."""
    try:
        answer = await request
    except aiohttp.ConnectionTimeoutError as error:
        raise UpstreamUnavailableError(504, "no connection in time") from error
    except aiohttp.ClientConnectorError as error:
        raise UpstreamUnavailableError(502, "no connection") from error
    except (aiohttp.ClientError, OSError) as error:
        raise UpstreamUnavailableError(502, "it broke off before it answered") from error
    if answer.status < 200:
        answer.close()
        raise UpstreamUnavailableError(502, f"unexpected status {answer.status}")
    return answer


def _read_upstream(upstream: str) -> tuple[str, str, int | None, str]:
    """Scheme, host, port and path prefix of a base URL."""
    try:
        parts = urlsplit(upstream)
        port = parts.port
    except ValueError as error:
        raise InvalidValueError(f"upstream {upstream!r} is not a URL.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidValueError(f"upstream {upstream!r} must be a URL such as http://127.0.0.1:4000.")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise InvalidValueError("upstream must be a URL without user, password, query and fragment.")
    return parts.scheme, parts.hostname, port, parts.path.rstrip("/")
