"""The reverse proxy against scripted servers on the loopback."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from types import SimpleNamespace
from typing import Any, Self

import pytest
import uvicorn

from llmweir.errors import InvalidValueError
from llmweir.traffic import upstream as upstream_module
from llmweir.traffic.forwarding import percent_encoded, without_key_parameter
from llmweir.traffic.proxy import Message, ReverseProxy, UpstreamBrokenError, UpstreamUnavailableError

pytestmark = pytest.mark.asyncio

PATIENCE_S = 10.0
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """One connection as a scripted upstream sees it."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)

    async def request(self) -> tuple[bytes, bytes]:
        head = await self.head()
        length = int((header(head, b"content-length") or [b"0"])[0])
        return head, await self.reader.readexactly(length)

    async def gone(self) -> None:
        """Returns when the proxy has closed the connection."""
        with contextlib.suppress(ConnectionResetError):
            while await asyncio.wait_for(self.reader.read(65536), PATIENCE_S):
                pass

    def reset(self) -> None:
        self.writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Upstream:
    """A raw server that plays a script to each connection and keeps what it saw."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self.script = script
        self.tls = tls
        self.connections = 0
        self.tasks: set[asyncio.Task[None]] = set()

    async def play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.connections += 1
        try:
            await self.script(Peer(self.connections, reader, writer))
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()
            self.tasks.discard(task)

    async def __aenter__(self) -> Self:
        self.server = await asyncio.start_server(self.play, "127.0.0.1", 0, ssl=self.tls)
        scheme = "https" if self.tls else "http"
        self.port = self.server.sockets[0].getsockname()[1]
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        for task in set(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class Call:
    """One ASGI request to a proxy: what it is given, and all that it sends."""

    def __init__(self, path: str = "/v1/chat/completions", body: bytes = b"{}", **scope: Any) -> None:
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [],
            "client": ("192.0.2.7", 5000),
            "scheme": "http",
        } | scope
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.feed(body)
        self.sent: list[Message] = []
        self.may_send = asyncio.Event()
        self.may_send.set()
        self.progress = asyncio.Condition()

    def feed(self, body: bytes, *, more_body: bool = False) -> None:
        self.incoming.put_nowait({"type": "http.request", "body": body, "more_body": more_body})

    def streamed(self) -> Call:
        """The same call with nothing of its body here yet."""
        self.incoming = asyncio.Queue()
        return self

    def leave(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})

    async def send(self, message: Message) -> None:
        async with self.progress:
            self.sent.append(message)
            self.progress.notify_all()
        await self.may_send.wait()

    async def until(self, is_true: Callable[[], bool]) -> None:
        async with self.progress:
            await asyncio.wait_for(self.progress.wait_for(is_true), PATIENCE_S)

    async def run(self, proxy: ReverseProxy) -> Call:
        await asyncio.wait_for(proxy(self.scope, self.incoming.get, self.send), PATIENCE_S)
        return self

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return list(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def is_complete(self) -> bool:
        return bool(self.sent) and self.sent[-1].get("more_body") is False


def header(head: bytes, name: bytes) -> list[bytes]:
    """All values of a header in a raw request head, in order."""
    lines = [line.partition(b": ") for line in head.split(b"\r\n")[1:]]
    return [value for key, _, value in lines if key.lower() == name]


def names(head: bytes) -> set[bytes]:
    return {line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:] if line}


def answering(answer: bytes, seen: list[tuple[bytes, bytes]] | None = None) -> Script:
    """A script that answers every request of a connection alike."""

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            if seen is not None:
                seen.append(request)
            peer.writer.write(answer)

    return script


async def forwarded(call: Call, prefix: str = "", **settings: Any) -> tuple[bytes, bytes]:
    """The head and body that the upstream gets for a call."""
    seen: list[tuple[bytes, bytes]] = []
    async with Upstream(answering(OK, seen)) as upstream, ReverseProxy(upstream.url + prefix, **settings) as proxy:
        await call.run(proxy)
    assert (call.status, call.body, call.is_complete) == (200, b"ok", True)
    assert len(seen) == 1
    return seen[0]


async def answered(answer: bytes, **scope: Any) -> Call:
    """A call whose upstream sends these bytes and closes the connection."""

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(answer)

    async with Upstream(script) as upstream, ReverseProxy(upstream.url) as proxy:
        return await Call(**scope).run(proxy)


@contextlib.asynccontextmanager
async def served(app: Any) -> AsyncIterator[int]:
    """The port of a uvicorn that serves an app."""
    config = uvicorn.Config(app, port=0, log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.005)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await serving


# --- requests


async def test_a_replayed_body_is_sent_whole_with_its_length() -> None:
    head, body = await forwarded(Call(body=b"x" * 1000, headers=[(b"content-length", b"5")]))
    assert body == b"x" * 1000
    assert header(head, b"content-length") == [b"1000"]
    assert b"transfer-encoding" not in names(head)


async def test_a_large_replayed_body_arrives_whole() -> None:
    body = bytes(range(256)) * 20_000
    head, got = await forwarded(Call(body=body))
    assert got == body
    assert header(head, b"content-length") == [str(len(body)).encode()]


async def test_a_streamed_body_is_sent_on_piece_by_piece() -> None:
    call = Call().streamed()
    first_piece = asyncio.Event()

    async def script(peer: Peer) -> None:
        assert header(await peer.head(), b"transfer-encoding") == [b"chunked"]
        assert await peer.reader.readexactly(8) == b"3\r\none\r\n"
        first_piece.set()
        assert await peer.reader.readuntil(b"0\r\n\r\n") == b"3\r\ntwo\r\n0\r\n\r\n"
        peer.writer.write(OK)

    async with Upstream(script) as upstream, ReverseProxy(upstream.url) as proxy:
        running = asyncio.create_task(call.run(proxy))
        call.feed(b"one", more_body=True)
        await asyncio.wait_for(first_piece.wait(), PATIENCE_S)
        call.feed(b"", more_body=True)
        call.feed(b"two")
        await running
    assert call.body == b"ok"


async def test_a_streamed_body_keeps_the_length_that_was_declared() -> None:
    call = Call(headers=[(b"content-length", b"6")]).streamed()
    call.feed(b"one", more_body=True)
    call.feed(b"two")
    head, body = await forwarded(call)
    assert body == b"onetwo"
    assert header(head, b"content-length") == [b"6"]
    assert b"transfer-encoding" not in names(head)


async def test_a_streamed_body_is_read_no_faster_than_the_upstream_takes_it() -> None:
    taken, piece, enough = 0, b"x" * 65536, asyncio.Event()

    async def receive() -> Message:
        nonlocal taken
        taken += len(piece)
        if taken >= 64 * 1024 * 1024:
            enough.set()
        await asyncio.sleep(0)
        return {"type": "http.request", "body": piece, "more_body": True}

    async def script(peer: Peer) -> None:
        await peer.head()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    async with Upstream(script) as upstream, ReverseProxy(upstream.url) as proxy:
        call = Call()
        running = asyncio.create_task(proxy(call.scope, receive, call.send))
        before = -1
        while taken != before:  # until it stands still
            before = taken
            await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert 0 < taken < 32 * 1024 * 1024
    assert not enough.is_set()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(b"connection", id="connection"),
        pytest.param(b"x-named", id="named by connection"),
        pytest.param(b"keep-alive", id="keep-alive"),
        pytest.param(b"proxy-authorization", id="proxy-authorization"),
        pytest.param(b"proxy-connection", id="proxy-connection"),
        pytest.param(b"te", id="te"),
        pytest.param(b"trailer", id="trailer"),
        pytest.param(b"transfer-encoding", id="transfer-encoding"),
        pytest.param(b"upgrade", id="upgrade"),
        pytest.param(b"x-llmweir-user-id", id="our own"),
        pytest.param(b"x_llmweir_user-id", id="our own in CGI spelling"),
        pytest.param(b"authorization", id="authorization"),
        pytest.param(b"x-api-key", id="x-api-key"),
        pytest.param(b"api-key", id="api-key"),
        pytest.param(b"ocp-apim-subscription-key", id="azure gateway key"),
        pytest.param(b"x-goog-api-key", id="x-goog-api-key"),
        pytest.param(b"x-extra-key", id="configured key header"),
    ],
)
async def test_a_header_that_is_not_for_the_upstream_stays_here(name: bytes) -> None:
    headers = [(b"connection", b"close, X-Named")] if name == b"x-named" else []
    call = Call(headers=[*headers, (name, b"secret"), (b"accept", b"a")])
    head, _ = await forwarded(call, caller_key_header="X-Extra-Key")
    assert b"secret" not in head
    assert names(head) == {b"host", b"accept", b"content-length", b"x-forwarded-for", b"x-forwarded-proto"}


async def test_no_header_of_the_client_library_is_added() -> None:
    head, _ = await forwarded(Call(client=None))
    assert names(head) == {b"host", b"content-length", b"x-forwarded-proto"}


async def test_headers_pass_as_raw_bytes_in_order_with_duplicates() -> None:
    headers = [(b"x-a", b"caf\xe9"), (b"x-b", "schön".encode()), (b"x-a", b"\xff\xfe\xc3"), (b"cookie", b"a=1")]
    head, body = await forwarded(Call(headers=headers, body=b"\xff\r\n\r\n\xfe"))
    assert b"\r\nx-a: caf\xe9\r\nx-b: sch\xc3\xb6n\r\nx-a: \xff\xfe\xc3\r\ncookie: a=1\r\n" in head
    assert body == b"\xff\r\n\r\n\xfe"


async def test_host_becomes_the_upstreams_and_the_callers_is_told() -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with Upstream(answering(OK, seen)) as upstream, ReverseProxy(upstream.url) as proxy:
        await Call(headers=[(b"host", b"api.example.com"), (b"x-forwarded-for", b"203.0.113.9")]).run(proxy)
    head = seen[0][0]
    assert header(head, b"host") == [f"127.0.0.1:{upstream.port}".encode()]
    assert header(head, b"x-forwarded-host") == [b"api.example.com"]
    assert header(head, b"x-forwarded-for") == [b"203.0.113.9, 192.0.2.7"]
    assert header(head, b"x-forwarded-proto") == [b"http"]


async def test_what_an_outer_proxy_told_of_scheme_and_host_is_kept() -> None:
    told = [(b"host", b"inner"), (b"x-forwarded-proto", b"https"), (b"x-forwarded-host", b"outer")]
    head, _ = await forwarded(Call(headers=told))
    assert header(head, b"x-forwarded-proto") == [b"https"]
    assert header(head, b"x-forwarded-host") == [b"outer"]


async def test_a_caller_waiting_for_100_continue_does_not_hold_the_body_back() -> None:
    head, body = await forwarded(Call(headers=[(b"expect", b"100-continue")], body=b"all"))
    assert b"expect" not in names(head)
    assert body == b"all"


@pytest.mark.parametrize(
    ("raw_path", "query", "target"),
    [
        pytest.param(b"/a%2Fb%zz/%41", b"", b"/base/a%2Fb%zz/%41", id="percent-encoding kept"),
        pytest.param(b"//a/../b/./c", b"", b"/base//a/../b/./c", id="no normalising"),
        pytest.param(b"/v1/m:gen;x='", b"a=%20+b&&c=&d", b"/base/v1/m:gen;x='?a=%20+b&&c=&d", id="query as it was"),
        pytest.param(b"/a", b"key=sk-1&alt=sse", b"/base/a?alt=sse", id="key parameter removed"),
        pytest.param(b"/a", b"key=sk-1", b"/base/a", id="only the key parameter"),
        pytest.param(b"/a\xe9", b"b=\xff", b"/base/a\xe9?b=\xff", id="raw bytes"),
        pytest.param(b"@evil.example/", b"", b"/base/@evil.example/", id="cannot change the host"),
        pytest.param(b"/a#b", b"c#d", b"/base/a#b?c#d", id="hash signs"),
    ],
)
async def test_the_target_passes_as_raw_bytes_behind_the_prefix(raw_path: bytes, query: bytes, target: bytes) -> None:
    head, _ = await forwarded(Call(raw_path=raw_path, query_string=query), prefix="/base/")
    assert head.split(b"\r\n")[0] == b"POST " + target + b" HTTP/1.1"


async def test_a_server_that_tells_no_raw_path_gets_the_path_quoted() -> None:
    head, _ = await forwarded(Call(path="/a b", raw_path=None, method="GET", body=b""))
    assert head.startswith(b"GET /a%20b HTTP/1.1\r\n")
    assert b"content-length" not in names(head)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (b"", b""),
        (b"a=1&key=2&b=3", b"a=1&b=3"),
        (b"k%65y=2&a", b"a"),
        (b"monkey=1&keys=2", b"monkey=1&keys=2"),
        (b"a=key", b"a=key"),
    ],
    ids=["empty", "in the middle", "encoded name", "other names", "as a value"],
)
async def test_only_the_key_parameter_is_removed(query: bytes, expected: bytes) -> None:
    assert without_key_parameter(query) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/chat/completions", (b"authorization", b"Bearer up")),
        ("/v1/messages", (b"x-api-key", b"up")),
        ("/v1/messages/count_tokens", (b"x-api-key", b"up")),
        ("/v1beta/models/gemini-2:generateContent", (b"x-goog-api-key", b"up")),
    ],
)
async def test_the_upstream_key_goes_where_the_provider_reads_it(path: str, expected: tuple[bytes, bytes]) -> None:
    headers = [(b"authorization", b"Bearer sk-1"), (b"x-api-key", b"sk-1"), (b"x-goog-api-key", b"sk-1")]
    head, _ = await forwarded(Call(path, headers=headers), upstream_api_key="up")
    assert b"sk-1" not in head
    assert header(head, expected[0]) == [expected[1]]
    assert len(names(head) & {b"authorization", b"x-api-key", b"x-goog-api-key"}) == 1


async def test_the_callers_key_is_forwarded_on_demand() -> None:
    call = Call(headers=[(b"authorization", b"Bearer sk-1")], query_string=b"key=sk-2")
    head, _ = await forwarded(call, forward_caller_key=True)
    assert header(head, b"authorization") == [b"Bearer sk-1"]
    assert head.startswith(b"POST /v1/chat/completions?key=sk-2 ")


def caller(**fields: Any) -> SimpleNamespace:
    empty = {"user_alias": None, "user_role": None, "key_alias": None}
    nothing: dict[str, Any] = {"teams": [], "metadata": {}, "guardrails": [], "permissions": {}}
    return SimpleNamespace(**(empty | nothing | {"user_id": "u", "request_id": "r"} | fields))


async def test_the_caller_is_told_to_the_upstream_and_empty_fields_are_left_out() -> None:
    who = caller(user_id="é\n", metadata={"ü": 1}, teams=("t1",), user_alias="Al B", guardrails=["g"])
    head, _ = await forwarded(Call(state={"llmweir": who}, headers=[(b"x-llmweir-user-role", b"proxy_admin")]))
    told = {name: header(head, name) for name in names(head) if name.startswith(b"x-llmweir-")}
    assert told == {
        b"x-llmweir-user-id": [b"%C3%A9%0A"],
        b"x-llmweir-user-alias": [b"Al B"],
        b"x-llmweir-request-id": [b"r"],
        b"x-llmweir-teams": [b'["t1"]'],
        b"x-llmweir-metadata": [b'{"\\u00fc":1}'],
        b"x-llmweir-guardrails": [b'["g"]'],
    }


async def test_permissions_and_role_are_told_too() -> None:
    head, _ = await forwarded(Call(state={"llmweir": caller(permissions={"a": True}, user_role="team")}))
    assert header(head, b"x-llmweir-permissions") == [b'{"a":true}']
    assert header(head, b"x-llmweir-user-role") == [b"team"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a b~", "a b~"), (" a ", "%20a%20"), ("  ", "%20%20"), ("a\x7f\t", "a%7F%09"), ("€", "%E2%82%AC")],
    ids=["printable", "spaces at the ends", "only spaces", "control characters", "utf-8"],
)
async def test_text_that_no_header_can_carry_is_percent_encoded(text: str, expected: str) -> None:
    assert percent_encoded(text) == expected


# --- answers


async def test_status_and_headers_pass_in_order_with_duplicates_and_raw_values() -> None:
    call = await answered(
        b"HTTP/1.1 418 Any Reason\r\nSet-Cookie: a=1\r\nX-Odd: \xe9\xff\r\nset-cookie: b=2\r\nkeep-alive: x\r\n"
        b"proxy-authenticate: Basic\r\nConnection: X-Gone\r\nx-gone: 1\r\ncontent-length: 1\r\n\r\nx"
    )
    assert call.status == 418
    assert call.headers == [
        (b"set-cookie", b"a=1"),
        (b"x-odd", b"\xe9\xff"),
        (b"set-cookie", b"b=2"),
        (b"content-length", b"1"),
    ]
    assert (call.body, call.is_complete) == (b"x", True)


async def test_a_compressed_body_is_not_touched() -> None:
    call = await answered(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x8b!!")
    assert (b"content-encoding", b"gzip") in call.headers
    assert call.body == b"\x1f\x8b!!"


async def test_a_redirect_is_handed_to_the_client() -> None:
    call = await answered(b"HTTP/1.1 307 T\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")
    assert call.status == 307
    assert (b"location", b"http://127.0.0.1:1/") in call.headers


async def test_no_cookie_is_kept_for_the_next_request() -> None:
    seen: list[tuple[bytes, bytes]] = []
    answer = b"HTTP/1.1 200 OK\r\nset-cookie: a=1; path=/\r\ncontent-length: 0\r\n\r\n"
    async with Upstream(answering(answer, seen)) as upstream, ReverseProxy(upstream.url) as proxy:
        await Call().run(proxy)
        await Call().run(proxy)
    assert upstream.connections == 1
    assert [header(head, b"cookie") for head, _ in seen] == [[], []]


@pytest.mark.parametrize(
    ("method", "answer", "status", "length", "body"),
    [
        pytest.param("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", 200, [b"9"], b"", id="HEAD"),
        pytest.param("GET", b"HTTP/1.1 204 No\r\n\r\n", 204, [], b"", id="204"),
        pytest.param("GET", b"HTTP/1.1 304 No\r\ncontent-length: 9\r\n\r\n", 304, [], b"", id="304"),
        pytest.param("GET", b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 103 E\r\nx: y\r\n\r\n" + OK, 200, [b"2"], b"ok", id="1xx"),
        pytest.param(
            "GET",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\nx-t: 1\r\n\r\n",
            200,
            [],
            b"abc",
            id="chunked with a trailer",
        ),
        pytest.param("GET", b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc", 200, [], b"abc", id="until close"),
    ],
)
async def test_an_answer_ends_where_http_says(
    method: str, answer: bytes, status: int, length: list[bytes], body: bytes
) -> None:
    call = await answered(answer, method=method, body=b"")
    assert call.status == status
    assert [value for name, value in call.headers if name == b"content-length"] == length
    assert (call.body, call.is_complete) == (body, True)
    assert b"transfer-encoding" not in dict(call.headers)


async def test_each_event_leaves_before_the_upstream_sends_the_next() -> None:
    call, arrived = Call(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for number in b"123":
            arrived.clear()
            peer.writer.write(b"1\r\n%c\r\n" % number)
            await asyncio.wait_for(arrived.wait(), PATIENCE_S)
        peer.writer.write(b"0\r\n\r\n")

    async def send(message: Message) -> None:
        await call.send(message)
        if message.get("body"):
            arrived.set()

    async with Upstream(script) as upstream, ReverseProxy(upstream.url) as proxy:
        await asyncio.wait_for(proxy(call.scope, call.incoming.get, send), PATIENCE_S)
    assert [message["body"] for message in call.sent[1:]] == [b"1", b"2", b"3", b""]
    assert call.is_complete


async def test_the_upstream_is_stalled_while_the_client_does_not_read() -> None:
    call, total, written = Call(), 100 * 1024 * 1024, 0
    call.may_send.clear()

    async def script(peer: Peer) -> None:
        nonlocal written
        await peer.request()
        peer.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        while written < total:
            peer.writer.write(b"x" * 65536)
            await peer.writer.drain()
            written += 65536

    async with Upstream(script) as upstream, ReverseProxy(upstream.url) as proxy:
        running = asyncio.create_task(call.run(proxy))
        await call.until(lambda: bool(call.sent))
        before = -1
        while written != before:
            before = written
            await asyncio.sleep(0.05)
        assert written < 20 * 1024 * 1024
        call.may_send.set()
        await running
    assert len(call.body) == total
    assert max(len(message["body"]) for message in call.sent[1:]) < 1024 * 1024


# --- those who leave


@pytest.mark.parametrize("is_answering", [False, True], ids=["before the answer", "in the middle of it"])
@pytest.mark.parametrize("how", ["leaves", "is cancelled"])
async def test_the_upstream_call_is_dropped_when_the_client(how: str, is_answering: bool) -> None:
    call, asked, gone = Call(), asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        if is_answering:
            peer.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nx")
        asked.set()
        await peer.gone()
        gone.set()

    async with Upstream(script) as upstream, ReverseProxy(upstream.url) as proxy:
        running = asyncio.create_task(call.run(proxy))
        await asyncio.wait_for(asked.wait(), PATIENCE_S)
        if is_answering:
            await call.until(lambda: len(call.sent) == 2)
        if how == "leaves":
            call.leave()
            await running
        else:
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        await asyncio.wait_for(gone.wait(), PATIENCE_S)
    assert not call.is_complete


async def test_a_client_that_leaves_while_it_stalls_the_answer_frees_the_upstream() -> None:
    call, gone = Call(), asyncio.Event()
    call.may_send.clear()

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nx")
        await peer.gone()
        gone.set()

    async with Upstream(script) as upstream, ReverseProxy(upstream.url) as proxy:
        running = asyncio.create_task(call.run(proxy))
        await call.until(lambda: bool(call.sent))
        call.leave()
        await running
        await asyncio.wait_for(gone.wait(), PATIENCE_S)


async def test_a_client_that_leaves_in_the_middle_of_its_body_ends_the_call() -> None:
    call, asked, gone = Call().streamed(), asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        asked.set()
        await peer.gone()
        gone.set()

    async with Upstream(script) as upstream, ReverseProxy(upstream.url) as proxy:
        call.feed(b"one", more_body=True)
        running = asyncio.create_task(call.run(proxy))
        await asyncio.wait_for(asked.wait(), PATIENCE_S)
        call.leave()
        await running
        await asyncio.wait_for(gone.wait(), PATIENCE_S)
    assert call.sent == []


async def test_a_client_gone_before_its_request_costs_no_call() -> None:
    call = Call().streamed()
    call.leave()
    await call.run(ReverseProxy("http://127.0.0.1:1"))
    assert call.sent == []


# --- upstreams that fail


async def failure(script: Script, *, url: str | None = None, **settings: Any) -> UpstreamUnavailableError:
    call = Call()
    async with Upstream(script) as upstream, ReverseProxy(url or upstream.url, **settings) as proxy:
        with pytest.raises(UpstreamUnavailableError) as caught:
            await call.run(proxy)
    assert call.sent == []
    return caught.value


async def hang(peer: Peer) -> None:
    await asyncio.Event().wait()


async def reset(peer: Peer) -> None:
    await peer.request()
    peer.reset()


async def close(peer: Peer) -> None:
    await peer.request()


async def babble(peer: Peer) -> None:
    await peer.request()
    peer.writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")


async def switch(peer: Peer) -> None:
    await peer.request()
    peer.writer.write(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n")


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize("script", [reset, close, babble, switch], ids=lambda script: str(script.__name__))
async def test_an_upstream_that_breaks_off_before_its_answer_is_502_and_asked_once(script: Script, method: str) -> None:
    call = Call(method=method)
    async with Upstream(script) as upstream, ReverseProxy(upstream.url) as proxy:
        with pytest.raises(UpstreamUnavailableError) as caught:
            await call.run(proxy)
    assert (caught.value.status, call.sent) == (502, [])
    assert upstream.connections == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://no-such-host.invalid"], ids=["refused", "no such name"])
async def test_an_upstream_that_cannot_be_reached_is_502(url: str) -> None:
    assert (await failure(hang, url=url)).status == 502


async def test_a_certificate_that_is_not_trusted_is_502(certificate: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    async with Upstream(answering(OK), tls) as upstream, ReverseProxy(upstream.url) as proxy:
        with pytest.raises(UpstreamUnavailableError) as caught:
            await Call().run(proxy)
    assert caught.value.status == 502


async def test_an_upstream_with_a_trusted_certificate_is_reached(certificate: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate))
    async with Upstream(answering(OK), tls) as upstream, ReverseProxy(upstream.url, tls=trusting) as proxy:
        assert (await Call().run(proxy)).body == b"ok"


async def test_no_answer_in_time_is_504() -> None:
    assert (await failure(hang, upstream_timeout_s=0.03)).status == 504


async def test_an_answer_may_take_longer_than_the_wait_for_its_first_byte() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
        for _ in range(2):
            await asyncio.sleep(0.05)
            peer.writer.write(b"x")

    async with Upstream(script) as upstream, ReverseProxy(upstream.url, upstream_timeout_s=0.05) as proxy:
        assert (await Call().run(proxy)).body == b"xx"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", id="short of its length"),
        pytest.param(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", id="no last chunk"),
    ],
)
async def test_half_an_answer_never_ends_cleanly(answer: bytes) -> None:
    call = Call()

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(answer)
        await call.until(lambda: len(call.sent) == 2)

    async with Upstream(script) as upstream, ReverseProxy(upstream.url) as proxy:
        with pytest.raises(UpstreamBrokenError):
            await call.run(proxy)
    assert (call.body, call.is_complete) == (b"abc", False)


# --- connections


async def test_connections_are_reused() -> None:
    async with Upstream(answering(OK)) as upstream, ReverseProxy(upstream.url) as proxy:
        for _ in range(3):
            await Call().run(proxy)
    assert upstream.connections == 1


async def test_an_idle_connection_is_closed_before_common_servers_would(monkeypatch: pytest.MonkeyPatch) -> None:
    assert upstream_module.KEEPALIVE_S < 5
    monkeypatch.setattr(upstream_module, "KEEPALIVE_S", 0.02)
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(OK)
        await peer.gone()
        gone.set()

    async with Upstream(script) as upstream, ReverseProxy(upstream.url) as proxy:
        await Call().run(proxy)
        await asyncio.wait_for(gone.wait(), PATIENCE_S)


@pytest.mark.parametrize("is_reset", [False, True], ids=["closed", "reset"])
async def test_a_connection_closed_while_idle_is_replaced_without_a_trace(is_reset: bool) -> None:
    requests: list[bytes] = []
    closed = asyncio.Event()

    async def script(peer: Peer) -> None:
        requests.append((await peer.request())[1])
        peer.writer.write(OK)
        await peer.writer.drain()
        if is_reset:
            peer.reset()
        else:
            peer.writer.close()
        closed.set()

    async with Upstream(script) as upstream, ReverseProxy(upstream.url) as proxy:
        assert (await Call().run(proxy)).body == b"ok"
        await asyncio.wait_for(closed.wait(), PATIENCE_S)
        assert (await Call(body=b"again").run(proxy)).body == b"ok"
    assert (upstream.connections, requests) == (2, [b"{}", b"again"])


@pytest.mark.parametrize("is_reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize(("method", "times"), [("GET", 2), ("OPTIONS", 2), ("POST", 1), ("PUT", 1)])
async def test_a_request_that_a_kept_connection_took_with_it_is_sent_again_only_where_that_does_no_harm(
    method: str, times: int, is_reset: bool
) -> None:
    requests: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(OK)
        if peer.number == 1:
            requests.append((await peer.request())[0])
            if is_reset:
                peer.reset()
            return
        requests.append(method.encode())
        await peer.gone()

    async with Upstream(script) as upstream, ReverseProxy(upstream.url) as proxy:
        assert (await Call().run(proxy)).body == b"ok"
        if times == 1:
            with pytest.raises(UpstreamUnavailableError):
                await Call(method=method).run(proxy)
        else:
            assert (await Call(method=method).run(proxy)).status == 200
    assert [request.startswith(method.encode()) for request in requests] == [True] * times
    assert upstream.connections == times


async def test_a_request_is_sent_again_once_and_only_on_a_new_connection() -> None:
    requests = 0
    both = asyncio.Barrier(2)

    async def script(peer: Peer) -> None:
        nonlocal requests
        await peer.request()
        await both.wait() if peer.number <= 2 else None
        if peer.number <= 2:
            peer.writer.write(OK)
            await peer.request()
        requests += 1

    async with Upstream(script) as upstream, ReverseProxy(upstream.url) as proxy:
        await asyncio.gather(Call().run(proxy), Call().run(proxy))  # two idle connections
        with pytest.raises(UpstreamUnavailableError):
            await Call(method="GET").run(proxy)
    assert (upstream.connections, requests) == (3, 2)


async def test_an_idle_connection_that_says_something_is_not_used_again() -> None:
    said = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(OK)
        if peer.number == 1:
            await asyncio.wait_for(said.wait(), PATIENCE_S)
            peer.writer.write(OK.replace(b"ok", b"no"))
        await peer.gone()

    async with Upstream(script) as upstream, ReverseProxy(upstream.url) as proxy:
        assert (await Call().run(proxy)).body == b"ok"
        said.set()
        await asyncio.sleep(0.01)
        assert (await Call().run(proxy)).body == b"ok"
    assert upstream.connections == 2


async def test_an_answer_that_falls_silent_is_broken_off_and_one_that_the_client_does_not_read_is_not() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok")
        await peer.gone()

    call = Call()
    call.may_send.clear()
    async with Upstream(script) as upstream, ReverseProxy(upstream.url, upstream_timeout_s=0.1) as proxy:
        running = asyncio.create_task(call.run(proxy))
        await call.until(lambda: bool(call.sent))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(running), 0.5)
        call.may_send.set()
        with pytest.raises(UpstreamBrokenError):
            await asyncio.wait_for(running, PATIENCE_S)
    assert (call.body, call.is_complete) == (b"ok", False)


@pytest.mark.parametrize(
    "beginning", [b"HTTP/1.1 2", b"HTTP/1.1 102 P\r\n\r\n"], ids=["half a head", "an interim answer"]
)
async def test_a_request_that_was_looked_at_is_not_sent_again(beginning: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(OK)
        await peer.request()
        peer.writer.write(beginning)

    async with Upstream(script) as upstream, ReverseProxy(upstream.url) as proxy:
        await Call().run(proxy)
        with pytest.raises(UpstreamUnavailableError):
            await Call().run(proxy)
    assert upstream.connections == 1


async def test_a_streamed_body_is_not_sent_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(OK)
        await peer.request()

    call = Call(headers=[(b"content-length", b"2")]).streamed()
    call.feed(b"a", more_body=True)
    call.feed(b"b")
    async with Upstream(script) as upstream, ReverseProxy(upstream.url) as proxy:
        await Call().run(proxy)
        with pytest.raises(UpstreamUnavailableError):
            await call.run(proxy)
    assert upstream.connections == 1


async def test_many_streams_run_at_once() -> None:
    count, together = 300, asyncio.Event()
    waiting = 0

    async def script(peer: Peer) -> None:
        nonlocal waiting
        await peer.request()
        waiting += 1
        if waiting == count:
            together.set()
        await asyncio.wait_for(together.wait(), PATIENCE_S)
        peer.writer.write(OK)

    async with Upstream(script) as upstream, ReverseProxy(upstream.url) as proxy:
        calls = await asyncio.gather(*(Call().run(proxy) for _ in range(count)))
    assert {call.body for call in calls} == {b"ok"}


async def test_lifespan_is_answered_and_its_end_closes_the_connections() -> None:
    gone, incoming, sent = asyncio.Event(), asyncio.Queue[Message](), list[Message]()

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(OK)
        await peer.gone()
        gone.set()

    async def send(message: Message) -> None:
        sent.append(message)

    async with Upstream(script) as upstream:
        proxy = ReverseProxy(upstream.url)
        await Call().run(proxy)
        incoming.put_nowait({"type": "lifespan.startup"})
        incoming.put_nowait({"type": "lifespan.shutdown"})
        await proxy({"type": "lifespan"}, incoming.get, send)
        await asyncio.wait_for(gone.wait(), PATIENCE_S)
        assert (await Call().run(proxy)).body == b"ok"  # opens anew
        await proxy.aclose()
        await proxy.aclose()
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@pytest.mark.parametrize(
    "upstream",
    ["127.0.0.1:4000", "ftp://a", "http://", "http://u:p@a", "http://a?b", "http://a#b", "http://a:b"],
)
async def test_an_upstream_that_is_no_base_url_is_refused(upstream: str) -> None:
    with pytest.raises(InvalidValueError):
        ReverseProxy(upstream)


# --- behind a real server


async def test_half_an_answer_breaks_the_clients_connection_behind_uvicorn() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")

    async with Upstream(script) as upstream, ReverseProxy(upstream.url) as proxy, served(proxy) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/x HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}")
        answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
        writer.close()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert not answer.endswith(b"0\r\n\r\n")


async def test_a_client_that_hangs_up_on_uvicorn_is_seen_by_the_upstream() -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.gone()
        gone.set()

    async with Upstream(script) as upstream, ReverseProxy(upstream.url) as proxy, served(proxy) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/x HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}")
        await asyncio.wait_for(asked.wait(), PATIENCE_S)
        writer.close()
        await asyncio.wait_for(gone.wait(), PATIENCE_S)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of its own for 127.0.0.1, in one file."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost "
        f"-addext subjectAltName=IP:127.0.0.1 -keyout {path}.key -out {path}.crt".split(),
        check=True,
        capture_output=True,
    )
    path.write_text(Path(f"{path}.key").read_text() + Path(f"{path}.crt").read_text())
    return path
