"""What one forwarded request costs in server CPU with each HTTP client: the numbers behind the proxy's choice.

A uvicorn (uvloop, httptools) on one pinned core forwards requests to a make-believe upstream on another core, once
with each client. Two shapes: a 1 KB POST answered with 1 KB, and one answered with 50 server-sent events, 2 ms
apart. What counts is the CPU time of the forwarding process (`/proc/PID/schedstat`) per request; `no client` is
what the same server spends on answering by itself, `llmweir` is the whole proxy. Clients take turns, and each keeps
its best round, so that a busy neighbour on the machine changes the ratios little.

    python benchmarks/http_clients.py                    # all that are installed, about 3 minutes
    python benchmarks/http_clients.py aiohttp httpcore   # only these
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, cast

import uvicorn
import uvloop

from llmweir.traffic.proxy import ReverseProxy

BODY = b'{"model":"m","input":"' + b"x" * 1000 + b'"}'
EVENT = b'data: {"choices":[{"delta":{"content":"a few words"}}]}\n\n'
EVENTS = 50
EVENT_GAP_S = 0.002
SHAPES = ("plain", "stream")
CONCURRENCIES = (1, 32)
ROUND_S = 1.5
ROUNDS = 2

Headers = Iterable[tuple[bytes, bytes]]
Answer = tuple[int, Headers, AsyncIterator[bytes]]
Forward = Callable[[str, str, Headers, bytes], Awaitable[Answer]]
ClientMaker = Callable[[str], Forward]


# --- the clients, each as cheap as its own documentation allows


def with_aiohttp(upstream: str) -> Forward:
    """aiohttp, by its documented arguments."""
    aiohttp: Any = importlib.import_module("aiohttp")
    url_class: Any = importlib.import_module("yarl").URL
    session: Any = None

    async def forward(method: str, target: str, headers: Headers, body: bytes) -> Answer:
        nonlocal session
        if session is None:
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                skip_auto_headers=("user-agent", "accept", "accept-encoding", "content-type"),
            )
        named = [(name.decode(), value.decode()) for name, value in headers]
        url = url_class(upstream + target, encoded=True)
        answer = await session.request(method, url, headers=named, data=body, allow_redirects=False)
        return answer.status, answer.raw_headers, aiter(answer.content.iter_any())

    return forward


def with_httpx(upstream: str, module: str = "httpx") -> Forward:
    """httpx, or a fork of it."""
    httpx: Any = importlib.import_module(module)
    client = httpx.AsyncClient(
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None), timeout=None, trust_env=False
    )

    async def forward(method: str, target: str, headers: Headers, body: bytes) -> Answer:
        request = client.build_request(method, upstream + target, headers=list(headers), content=body)
        answer = await client.send(request, stream=True)
        return answer.status_code, answer.headers.raw, closing(answer.aiter_raw(), answer.aclose)

    return forward


def with_httpcore(upstream: str, module: str = "httpcore") -> Forward:
    """httpcore, or a fork of it."""
    httpcore: Any = importlib.import_module(module)
    pool = httpcore.AsyncConnectionPool(max_connections=None, max_keepalive_connections=None)
    host = [(b"host", upstream.split("//")[1].encode())]

    async def forward(method: str, target: str, headers: Headers, body: bytes) -> Answer:
        request = httpcore.Request(method, upstream + target, headers=host + list(headers), content=body)
        answer = await pool.handle_async_request(request)
        return answer.status, answer.headers, closing(answer.aiter_stream(), answer.aclose)

    return forward


def with_niquests(upstream: str) -> Forward:
    """niquests, on HTTP/1.1."""
    niquests: Any = importlib.import_module("niquests")
    session: Any = None

    async def forward(method: str, target: str, headers: Headers, body: bytes) -> Answer:
        nonlocal session
        if session is None:
            session = niquests.AsyncSession(pool_maxsize=1000, disable_http2=True, disable_http3=True)
            session.trust_env = False
        named = {name.decode(): value.decode() for name, value in headers}
        answer = await session.request(
            method, upstream + target, headers=named, data=body, stream=True, allow_redirects=False
        )
        raw = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        return answer.status_code, raw, closing(answer.raw.stream(-1, decode_content=False), answer.close)

    return forward


def with_urllib3_future(upstream: str) -> Forward:
    """urllib3-future, on which niquests stands."""
    urllib3_future: Any = importlib.import_module("urllib3_future")
    pools: Any = None

    async def forward(method: str, target: str, headers: Headers, body: bytes) -> Answer:
        nonlocal pools
        if pools is None:
            pools = urllib3_future.AsyncPoolManager(maxsize=1000)
        named = {name.decode(): value.decode() for name, value in headers}
        answer = await pools.urlopen(
            method,
            upstream + target,
            headers=named,
            body=body,
            preload_content=False,
            decode_content=False,
            redirect=False,
            retries=False,
        )
        raw = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        return answer.status, raw, closing(answer.stream(-1, decode_content=False), answer.release_conn)

    return forward


async def closing(chunks: AsyncIterator[bytes], close: Callable[[], Awaitable[None] | None]) -> AsyncIterator[bytes]:
    """All chunks, then the answer closed."""
    async for chunk in chunks:
        yield chunk
    done = close()
    if done is not None:
        await done


CLIENTS: dict[str, ClientMaker] = {
    "aiohttp": with_aiohttp,
    "httpcore": with_httpcore,
    "httpcore2": lambda upstream: with_httpcore(upstream, "httpcore2"),
    "httpx": with_httpx,
    "httpx2": lambda upstream: with_httpx(upstream, "httpx2"),
    "niquests": with_niquests,
    "urllib3_future": with_urllib3_future,
}
DROPPED = frozenset({b"host", b"connection", b"transfer-encoding"})


# --- the forwarding server


def forwarding_app(forward: Forward) -> Any:
    """The smallest proxy there is round a client."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        headers = [pair for pair in scope["headers"] if pair[0] not in DROPPED]
        status, raw, chunks = await forward(scope["method"], scope["raw_path"].decode(), headers, message["body"])
        kept = [pair for pair in raw if pair[0].lower() not in DROPPED]
        await send({"type": "http.response.start", "status": status, "headers": kept})
        async for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


async def app_without_client(scope: Any, receive: Any, send: Any) -> None:
    """Answers as the upstream does, by itself."""
    await receive()
    if scope["path"] == "/plain":
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": BODY, "more_body": True})
    else:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(EVENTS):
            await asyncio.sleep(EVENT_GAP_S)
            await send({"type": "http.response.body", "body": EVENT, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def serve(name: str, upstream: str, port: int) -> None:
    """The forwarding server; runs until it is killed."""
    app: Any
    if name == "llmweir":
        app = ReverseProxy(upstream)
    else:
        app = app_without_client if name == "no client" else forwarding_app(CLIENTS[name](upstream))
    uvicorn.run(app, port=port, loop="uvloop", http="httptools", log_level="error", access_log=False, lifespan="off")


# --- the make-believe upstream and the load, in this process


class Upstream(asyncio.Protocol):
    """Answers each request by its path; knows that every request is BODY long."""

    def __init__(self) -> None:
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answers once a whole request is here."""
        self.buffer += data
        head_end = self.buffer.find(b"\r\n\r\n")
        if head_end < 0 or len(self.buffer) < head_end + 4 + len(BODY):
            return
        streamed = self.buffer.startswith(b"POST /stream")
        self.buffer = b""
        if not streamed:
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY)
            self.transport.write(head + BODY)
            return
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        self.send_event(EVENTS)

    def send_event(self, left: int) -> None:
        """Sends one event now, and the others after it one by one."""
        self.transport.write(b"%x\r\n%s\r\n" % (len(EVENT), EVENT))
        if left > 1:
            asyncio.get_running_loop().call_later(EVENT_GAP_S, self.send_event, left - 1)
        else:
            self.transport.write(b"0\r\n\r\n")


async def one_caller(port: int, shape: str, until: float) -> int:
    """Asks again and again until the time is up; returns how often."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /{shape} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer sk-1\r\ncontent-type: application/json\r\n"
    request = f"{head}accept: */*\r\nuser-agent: bench\r\ncontent-length: {len(BODY)}\r\n\r\n".encode() + BODY
    end, done = (BODY if shape == "plain" else b"0\r\n\r\n"), 0
    while time.monotonic() < until:
        writer.write(request)
        answer = await reader.readuntil(end)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer[:200])
        done += 1
    writer.close()
    return done


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


async def measure(pid: int, port: int, shape: str, concurrency: int, seconds: float) -> float:
    """CPU microseconds of the forwarding process for one request."""
    before, until = cpu_ns(pid), time.monotonic() + seconds
    done = await asyncio.gather(*(one_caller(port, shape, until) for _ in range(concurrency)))
    return (cpu_ns(pid) - before) / sum(done) / 1000


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def started(name: str, upstream: str, core: int) -> tuple[subprocess.Popen[bytes], int]:
    """A forwarding server on one core, ready to answer, and its port."""
    port = free_port()
    process = subprocess.Popen([sys.executable, __file__, "--serve", name, upstream, str(port)])  # noqa: ASYNC220, S603
    os.sched_setaffinity(process.pid, {core})
    for _ in range(200):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return process, port
    raise RuntimeError(f"{name} did not start")


async def compare(names: list[str]) -> dict[str, dict[tuple[str, int], float]]:
    """CPU microseconds a request by client, shape and concurrency: the best round of each."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
    upstream = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    servers = {name: await started(name, upstream, cores[0]) for name in names}
    best: dict[str, dict[tuple[str, int], float]] = {name: {} for name in names}
    try:
        for round_number in range(ROUNDS + 1):  # the first one warms up
            for name, (process, port) in servers.items():
                for case in [(shape, concurrency) for shape in SHAPES for concurrency in CONCURRENCIES]:
                    seconds = ROUND_S if round_number else 0.3
                    cost_us = await measure(process.pid, port, *case, seconds)
                    if round_number:
                        best[name][case] = min(cost_us, best[name].get(case, cost_us))
    finally:
        for process, _ in servers.values():
            process.terminate()
            process.wait()
    return best


def print_table(best: dict[str, dict[tuple[str, int], float]]) -> None:
    """One line a client."""
    cases = [(shape, concurrency) for shape in SHAPES for concurrency in CONCURRENCIES]
    cheapest = {case: min(costs[case] for name, costs in best.items() if name != "no client") for case in cases}
    print("server CPU per request in us (ratio to the cheapest client)")
    print(f"{'':<15}" + "".join(f"{f'{shape} x{concurrency}':>18}" for shape, concurrency in cases))
    for name, costs in best.items():
        cells = (f"{costs[case]:>11.0f} {costs[case] / cheapest[case]:>5.2f}x" for case in cases)
        print(f"{name:<15}" + "".join(cells))


def main() -> None:
    """Runs the comparison, or one of its servers."""
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return
    wanted = sys.argv[1:] or [*(name for name in CLIENTS if importlib.util.find_spec(name)), "llmweir"]
    print_table(uvloop.run(compare(["no client", *wanted])))


if __name__ == "__main__":
    main()
