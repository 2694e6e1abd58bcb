"""A served gate as a process of its own, clients and upstreams that speak over bare sockets, and the books to check."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import redis
from tests.harness import TOMBSTONE_BYTES

import llmweir
from llmweir.decision import Admitted, LimitRefused
from llmweir.engine.api_keys import ApiKeys
from llmweir.engine.asks import Ask, Settlement
from llmweir.engine.keys import user_keys
from llmweir.engine.link import Link
from llmweir.engine.store import Store
from llmweir.engine.users import Users
from llmweir.key_records import NewKey
from llmweir.records import parse_new

SOURCE = Path(llmweir.__file__).parents[1]
PATIENCE_S = 20.0
INPUT_NANOS, OUTPUT_NANOS = 2_500, 10_000
"""The price of a token, of every model."""
PRICES = {"*": {"input": INPUT_NANOS / 1000, "output": OUTPUT_NANOS / 1000}}
CHAT_PATH = "/v1/chat/completions"
Script = Callable[["Peer"], Awaitable[bool]]
"""What an upstream does with a request; whether the connection is good for another."""


class Account(NamedTuple):
    """What a user has used, and what is still held: nothing else may be left of a request."""

    requests: int
    tokens: int
    spend_nanos: int
    slots: int = 0


class Books:
    """Makes users, and says what they have used; beside the gate, straight from the store."""

    def __init__(self, redis_url: str) -> None:
        self.redis_url = redis_url
        self._ids = itertools.count()

    async def user(self, user_id: str, **limits: Any) -> str:
        """Makes a user and returns an API key of theirs."""
        async with self._link() as link:
            users = Users(link)
            await users.create(parse_new(json.dumps({"user_id": user_id, **limits}).encode()))
            return (await ApiKeys(users).mint(user_id, NewKey())).secret

    async def account(self, user_id: str) -> Account:
        """What a user has used, read by an admission that is taken back."""
        slots = self.slots(user_id)
        async with self._link() as link:
            store = Store(link)
            ask = Ask(request_id=f"look-{os.getpid()}-{next(self._ids)}", user_id=user_id, key_hash="")
            decision = await store.admit(ask)
            assert isinstance(decision, (Admitted, LimitRefused)), decision
            standing = decision.standing
            assert standing is not None
            requests = standing.rpm_used
            if isinstance(decision, Admitted):
                requests -= 1
                await store.settle(Settlement(request_id=ask.request_id, user_id=user_id, cancelled=True))
            return Account(requests, standing.tpm_used, standing.budget_used_nanos, slots)

    async def settled(self, user_id: str) -> Account:
        """What a user has used, once nothing of theirs is in flight any more."""
        await until(lambda: self.slots(user_id) == 0)
        return await self.account(user_id)

    def slots(self, user_id: str) -> int:
        """How many requests of a user are in flight."""
        with redis.from_url(self.redis_url) as client:
            leases: Any = client.hvals(user_keys(user_id).leases.decode())
            return sum(len(lease) != TOMBSTONE_BYTES for lease in leases)

    def calls(self, command: str) -> int:
        """How many times the store has carried out a command."""
        with redis.from_url(self.redis_url) as client:
            stats: Any = client.info("commandstats")
            return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])

    @contextlib.asynccontextmanager
    async def _link(self) -> AsyncIterator[Link]:
        link = Link(self.redis_url, timeout_ms=10_000)
        try:
            yield link
        finally:
            await link.aclose()


async def until(holds: Callable[[], bool], *, patience_s: float = PATIENCE_S) -> None:
    """Waits until something holds; fails where it does not in time."""
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold in time"
        await asyncio.sleep(0.005)


class Gate:
    """A running `llmweir serve` of one worker: its address, its process, the lines of its log."""

    def __init__(self, process: subprocess.Popen[str], books: Books) -> None:
        self.process = process
        self.books = books
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.port = int(re.search(r"url=http://127\.0\.0\.1:(\d+)", self._listening())[1])  # type: ignore[index]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    def _listening(self) -> str:
        deadline = time.monotonic() + PATIENCE_S
        while not (found := [line for line in self.lines if " listening " in line]):
            assert time.monotonic() < deadline, self.lines
            assert self.process.poll() is None, self.lines
            time.sleep(0.02)
        return found[0]

    def close(self) -> None:
        """Reads the rest of the log of a process that has ended."""
        self._reader.join(PATIENCE_S)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def memory_bytes(self) -> int:
        """What the process holds in memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        """A client's connection, reset at the end if it is still there."""
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        try:
            yield client
        finally:
            client.writer.transport.abort()

    async def ask(self, sent: bytes) -> Received:
        """Sends bytes and takes what comes until the gate closes the connection."""
        async with self.connected() as client:
            client.send(sent)
            return await client.rest()


@contextlib.contextmanager
def serving(upstream_port: int, redis_url: str, folder: Path, *flags: str) -> Iterator[Gate]:
    """Runs `llmweir serve` in front of a port of the loopback; ends it, and shows its log where it had errors."""
    prices = folder / "prices.json"
    prices.write_text(json.dumps(PRICES))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LLMWEIR_")}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "llmweir.cli", "serve", "--port", "0", "--redis-url", redis_url),
            *("--upstream", f"http://127.0.0.1:{upstream_port}", "--price-file", str(prices)),
            *("--data-dir", str(folder / "data"), "--store-timeout-ms", "10000", *flags),
        ],
        cwd=folder,
        env={**clean, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    gate = None
    try:
        gate = Gate(process, Books(redis_url))
        yield gate
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0, gate.lines
        assert "Traceback" not in "".join(gate.lines), "".join(gate.lines)
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        if gate is not None:
            gate.close()


class Received(NamedTuple):
    """All that came over a client's connection; `was_reset` where it ended with a reset."""

    raw: bytes
    was_reset: bool = False

    @property
    def status(self) -> int:
        """The status of the last answer, 0 where there was none."""
        found = re.findall(rb"HTTP/1\.[01] (\d{3}) ", self.raw)
        return int(found[-1]) if found else 0

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The headers of the first answer."""
        lines = self.raw.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
        return [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]

    def header(self, name: str) -> list[str]:
        """All values of a header."""
        return [value for key, value in self.headers if key == name]

    @property
    def body(self) -> bytes:
        """The body of the first answer, out of its chunks."""
        body = self.raw.partition(b"\r\n\r\n")[2]
        return _unchunked(body)[0] if self.header("transfer-encoding") else body

    @property
    def is_whole(self) -> bool:
        """Whether the answer came to the end that it had declared."""
        body = self.raw.partition(b"\r\n\r\n")[2]
        if self.header("transfer-encoding"):
            return _unchunked(body)[1]
        return not self.was_reset and self.header("content-length") == [str(len(body))]

    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


def _unchunked(raw: bytes) -> tuple[bytes, bool]:
    """The content of chunks, and whether the last one came."""
    body = b""
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        if not size or int(size, 16) == 0:
            return body, raw == b"\r\n"
        body, raw = body + raw[: int(size, 16)], raw[int(size, 16) + 2 :]
    return body, False


@dataclass
class Client:
    """One connection to the gate."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, sent: bytes) -> None:
        """Sends bytes."""
        self.writer.write(sent)

    async def read_until(self, needle: bytes) -> bytes:
        """Reads on until something has come."""
        return await asyncio.wait_for(self.reader.readuntil(needle), PATIENCE_S)

    async def rest(self) -> Received:
        """Reads on until the connection ends."""
        raw = b""
        async with asyncio.timeout(PATIENCE_S):
            try:
                while part := await self.reader.read(1 << 16):
                    raw += part
            except ConnectionError:
                return Received(raw, was_reset=True)
        return Received(raw)

    def reset(self) -> None:
        """Ends the connection with a reset."""
        reset(self.writer)

    def leave(self) -> None:
        """Closes the connection, as a process that ends does."""
        self.writer.transport.abort()


def reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with a reset."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def post(key: str, body: bytes, *headers: str, path: str = CHAT_PATH, close: bool = True, length: bool = True) -> bytes:
    """A request as a client writes it."""
    lines = [f"POST {path} HTTP/1.1", "host: gate", f"authorization: Bearer {key}", "content-type: application/json"]
    lines += [f"content-length: {len(body)}"] * length + ["connection: close"] * close + list(headers)
    return "\r\n".join((*lines, "", "")).encode("latin-1") + body


def chat(model: str = "a-model", content: str = "hi", **members: Any) -> bytes:
    """The body of a chat request."""
    return json.dumps({"model": model, "messages": [{"role": "user", "content": content}], **members}).encode()


class Peer:
    """One connection as a scripted upstream sees it."""

    def __init__(self, upstream: RawUpstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.upstream = upstream
        self.reader = reader
        self.writer = writer
        self._first = b""

    async def is_asked(self) -> bool:
        """Waits until a request begins; False where the gate closes instead."""
        self._first = await self.reader.read(1)
        return bool(self._first)

    async def head(self) -> bytes:
        """The head of a request, which is then counted."""
        head = self._first + await self.reader.readuntil(b"\r\n\r\n")
        self.upstream.heads.append(head)
        return head

    async def request(self) -> tuple[bytes, bytes]:
        """The head and the body of a request."""
        head = await self.head()
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        return head, await self.reader.readexactly(int(length[1]) if length else 0)

    async def say(self, *parts: bytes) -> None:
        """Sends parts, and waits where the gate does not take them."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()

    async def gone(self) -> None:
        """Returns when the gate has given up the connection."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(1 << 16):
                pass

    def is_given_up(self) -> bool:
        """Whether the gate has closed the connection, as far as this system knows by now."""
        connection = self.writer.get_extra_info("socket")
        if self.writer.is_closing() or connection.fileno() < 0:
            return True
        events = select.poll()
        events.register(connection.fileno(), select.POLLRDHUP)
        return bool(events.poll(0))

    def reset(self) -> None:
        """Ends the connection with a reset."""
        reset(self.writer)


@dataclass
class RawUpstream:
    """A server on the loopback, in a thread of its own, that plays `script` to every request."""

    script: Script
    heads: list[bytes] = field(default_factory=list)
    """The heads of all requests that reached it."""
    open: int = 0
    """Connections that are being played to."""
    sent_bytes: int = 0
    """What a script says that it has sent."""
    port: int = 0
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    connections: int = 0
    """Connections there ever were."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def __enter__(self) -> Self:
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(PATIENCE_S)

    def play(self, script: Script) -> None:
        """Plays another script from the next request on."""
        self.heads.clear()
        self.script = script

    def _run(self, started: threading.Event) -> None:
        self._loop.run_until_complete(self._serve(started))
        self._loop.close()

    async def refuse(self) -> None:
        """Listens no more, and gives up all connections."""
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._refuse(), self._loop))

    async def listen(self) -> None:
        """Listens again, at the same port."""
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._listen(), self._loop))

    async def _refuse(self) -> None:
        self._server.close()
        for writer in self._writers:
            reset(writer)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, backlog=1000)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, started: threading.Event) -> None:
        self._ended = asyncio.Event()
        await self._listen()
        started.set()
        await self._ended.wait()
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.open += 1
        self.connections += 1
        try:
            peer = Peer(self, reader, writer)
            while await peer.is_asked() and await self.script(peer):
                pass
            writer.close()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort() if not writer.is_closing() else None
            self.open -= 1
            self._writers.discard(writer)
            self._tasks.discard(task)


USAGE = {"prompt_tokens": 20, "completion_tokens": 30, "total_tokens": 50}
GOOD_TOKENS, GOOD_NANOS = 50, 20 * INPUT_NANOS + 30 * OUTPUT_NANOS
"""What a good answer uses."""


def plain(content: Any, status: str = "200 OK", headers: Mapping[str, str] | None = None) -> bytes:
    """An answer with its length, of JSON or of bytes as they are."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    pairs = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in pairs.items() if value), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def answer(usage: Any = USAGE, content: str = "hello there") -> dict[str, Any]:
    """What OpenAI answers to a chat."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return {"object": "chat.completion", "choices": [choice]} | ({} if usage is ... else {"usage": usage})


GOOD = plain(answer())
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    """A chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(content: Any) -> bytes:
    """An event of a stream."""
    return b"data: " + (content if isinstance(content, bytes) else json.dumps(content).encode()) + b"\n\n"


def words(content: str) -> bytes:
    """An event that says something."""
    return event({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": content}}]})


def usage_event(usage: Any) -> bytes:
    """The event without choices that says what was used."""
    return event({"object": "chat.completion.chunk", "choices": [], "usage": usage})


def stream(*events: bytes) -> bytes:
    """A whole streamed answer."""
    return STREAM_HEAD + b"".join(map(chunk, events)) + LAST_CHUNK


GOOD_STREAM = stream(words("hello there"), usage_event(USAGE), DONE)


async def good(peer: Peer) -> bool:
    """Answers as an upstream should."""
    _, body = await peer.request()
    await peer.say(GOOD_STREAM if b'"stream": true' in body or b'"stream":true' in body else GOOD)
    return True
