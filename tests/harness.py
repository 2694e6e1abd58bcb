"""A whole gate for the tests: real uvicorn on a free port, a scripted upstream behind it, users in a real store.

Everything runs in the event loop of the test; `staged` puts the gate in front, `around` wraps the scripted app itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeAlias

import httpx
import msgspec
import redis
import uvicorn

from llmweir.decision import CallerRefused, Standing
from llmweir.engine.api_keys import ApiKeys
from llmweir.engine.asks import AliasOf, Ask, Settlement
from llmweir.engine.keys import user_keys
from llmweir.key_records import NewKey
from llmweir.records import parse_new, parse_update
from llmweir.settings import Settings
from llmweir.traffic.asgi import App, Message, Receive, Scope, Send
from llmweir.wiring import RateLimitMiddleware, Weir, front

PATIENCE_S = 10.0
MASTER_KEY = "sk-master-of-the-tests"
TOMBSTONE_BYTES = 38
"""What stands in place of a lease where a request was cancelled that may come yet: no slot."""
PRICES = {
    "gpt-4o": {"input": 2.5, "output": 10.0},
    "gpt-4o-mini": {"input": 0.1, "output": 1.0},
    "text-embedding-3-small": {"input": 0.02, "output": 0.0},
    "claude-test-1": {"input": 3.0, "cached_input": 0.3, "output": 15.0},
    "gemini-2.5-flash": {"input": 0.3, "output": 2.5},
}
"""USD per million tokens; nano-dollars per token are a thousand times as many."""
INPUT_TOKENS, OUTPUT_TOKENS = 20, 30
"""What the upstream says it used, where a script says nothing else."""
TOKENS = INPUT_TOKENS + OUTPUT_TOKENS
COST_NANOS = INPUT_TOKENS * 2500 + OUTPUT_TOKENS * 10_000
"""What that costs with gpt-4o."""

Answer: TypeAlias = "Callable[[Seen, Send], Awaitable[None]]"


@dataclass
class Seen:
    """One request as the upstream got it; `receive` goes on with whatever comes after the body."""

    method: str
    path: str
    raw_path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    at_s: float
    state: Mapping[str, Any]
    receive: Receive

    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key == name), None)


@dataclass
class Upstream:
    """An ASGI app that keeps every request it gets and plays `answer` to it."""

    answer: Answer
    seen: list[Seen] = field(default_factory=list)
    ended: int = 0
    """Requests whose answer has come to an end, whole or not."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        seen = Seen(
            scope["method"], scope["path"], scope["raw_path"], scope["query_string"], list(scope["headers"]),
            body, time.monotonic(), scope.get("state", {}), receive,
        )  # fmt: skip
        self.seen.append(seen)
        try:
            await self.answer(seen, send)
        finally:
            self.ended += 1


def plain(content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Answers with a body: bytes as they are, anything else as JSON."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    pairs = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}

    async def answer(seen: Seen, send: Send) -> None:
        await send(_start(status, pairs))
        await send({"type": "http.response.body", "body": body})

    return answer


def streamed(
    *events: bytes, broken: bool = False, hold: asyncio.Event | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """Answers with an event stream; `broken` cuts it off, `hold` keeps it open after the events until it is set."""

    async def answer(seen: Seen, send: Send) -> None:
        await send(_start(200, {"content-type": "text/event-stream", **(headers or {})}))
        for event in events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        if hold is not None:
            await first_of(hold.wait(), _left(seen.receive))
        if broken:
            raise BrokenOffError
        await send({"type": "http.response.body", "body": b""})

    return answer


def held(until: asyncio.Event, then: Answer) -> Answer:
    """Answers once `until` is set."""

    async def answer(seen: Seen, send: Send) -> None:
        await first_of(until.wait(), _left(seen.receive))
        await then(seen, send)

    return answer


class BrokenOffError(Exception):
    """A scripted upstream dies on purpose; the server then cuts the connection."""


async def first_of(*waits: Awaitable[object]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE_S)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(status: int, headers: Mapping[str, str]) -> Message:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": pairs}


def sse(*datas: Any) -> tuple[bytes, ...]:
    """Events as the providers write them; a dict with a `type` gets it as its event name, as Anthropic has it."""
    events = []
    for data in datas:
        text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
        events.append(f"data: {text}\n\n".encode())
    return tuple(events)


def named_sse(*datas: dict[str, Any]) -> tuple[bytes, ...]:
    return tuple(f"event: {data['type']}\ndata: {json.dumps(data)}\n\n".encode() for data in datas)


CHAT_USAGE = {"prompt_tokens": INPUT_TOKENS, "completion_tokens": OUTPUT_TOKENS, "total_tokens": TOKENS}


def chat_answer(usage: Any = CHAT_USAGE, content: str = "hello there you") -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    answer = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-4o", "choices": [choice]}
    return answer if usage is None else {**answer, "usage": usage}


def chat_chunk(content: str | None, **members: Any) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": "stop" if content is None else None}
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o"}
    return {**chunk, "choices": [choice], **members}


def chat_events(words: tuple[str, ...] = ("hello ", "there ", "you"), *, usage: bool) -> tuple[bytes, ...]:
    """What OpenAI streams: with `usage` every chunk has a null one, and an event without choices has it."""
    members: dict[str, Any] = {"usage": None} if usage else {}
    chunks = [chat_chunk(word, **members) for word in words] + [chat_chunk(None, **members)]
    last = [chat_chunk(None, usage=CHAT_USAGE) | {"choices": []}] if usage else []
    return sse(*chunks, *last, "[DONE]")


async def speak(seen: Seen, send: Send) -> None:
    """Answers as a provider would, whatever it is asked: chat, responses, embeddings, messages, Gemini."""
    path = seen.path.lower()
    is_form = path.endswith("/transcriptions")
    body = seen.json() if seen.body and not is_form else {}
    stream = body.get("stream") is True or path.endswith(":streamgeneratecontent")
    if is_form:
        answer = plain({"text": "hello", "usage": RESPONSES_ANSWER["usage"]})
    elif "messages" in path and "chat" not in path:
        answer = streamed(*named_sse(*ANTHROPIC_EVENTS)) if stream else plain(ANTHROPIC_ANSWER)
    elif "generatecontent" in path:
        answer = streamed(*sse(GEMINI_ANSWER)) if stream else plain(GEMINI_ANSWER)
    elif path.endswith("/responses"):
        answer = streamed(*named_sse(*RESPONSES_EVENTS)) if stream else plain(RESPONSES_ANSWER)
    elif path.endswith("/embeddings"):
        answer = plain(EMBEDDINGS_ANSWER)
    elif path.endswith("/completions") and "chat" not in path:
        answer = plain(COMPLETIONS_ANSWER)
    elif stream:
        wants = (body.get("stream_options") or {}).get("include_usage") is True
        answer = streamed(*chat_events(usage=wants))
    else:
        answer = plain(chat_answer())
    await answer(seen, send)


EMBEDDINGS_ANSWER = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}],
    "model": "text-embedding-3-small",
    "usage": {"prompt_tokens": INPUT_TOKENS, "total_tokens": INPUT_TOKENS},
}
COMPLETIONS_ANSWER = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1,
    "model": "gpt-4o",
    "choices": [{"text": "hello", "index": 0, "logprobs": None, "finish_reason": "stop"}],
    "usage": CHAT_USAGE,
}
RESPONSES_ANSWER = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "gpt-4o",
    "status": "completed",
    "output": [
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "hello", "annotations": []}],
        }
    ],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "usage": {
        "input_tokens": INPUT_TOKENS,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": OUTPUT_TOKENS,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": TOKENS,
    },
}
RESPONSES_EVENTS: tuple[dict[str, Any], ...] = (
    {
        "type": "response.output_text.delta",
        "item_id": "msg_1",
        "output_index": 0,
        "content_index": 0,
        "delta": "hello",
        "logprobs": [],
        "sequence_number": 1,
    },
    {"type": "response.completed", "response": RESPONSES_ANSWER, "sequence_number": 2},
)
ANTHROPIC_ANSWER = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-test-1",
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS},
}
ANTHROPIC_EVENTS: tuple[dict[str, Any], ...] = (
    {
        "type": "message_start",
        "message": {
            **ANTHROPIC_ANSWER,
            "content": [],
            "stop_reason": None,
            "usage": {"input_tokens": INPUT_TOKENS, "output_tokens": 1},
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": OUTPUT_TOKENS},
    },
    {"type": "message_stop"},
)
GEMINI_ANSWER = {
    "candidates": [{"content": {"role": "model", "parts": [{"text": "hello"}]}, "finishReason": "STOP", "index": 0}],
    "usageMetadata": {
        "promptTokenCount": INPUT_TOKENS,
        "candidatesTokenCount": OUTPUT_TOKENS,
        "totalTokenCount": TOKENS,
    },
    "modelVersion": "gemini-2.5-flash",
}


class Served:
    """An ASGI app on a free port of the loopback."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        # By its protocol asyncio knows that Nagle's algorithm is to be off.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app, http="httptools", ws="websockets-sansio", log_config=None, server_header=False, date_header=False
        )
        config.load()
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)
        await self._server.startup(sockets=[listener])
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._server.servers:
            server.close()
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*self._server.server_state.tasks, return_exceptions=True)
            await self._server.lifespan.shutdown()


@dataclass
class Stage:
    """A served gate, what stands behind it, and its store."""

    weir: Weir
    upstream: Upstream
    port: int
    redis_url: str
    http: httpx.AsyncClient
    _ids: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def seen(self) -> list[Seen]:
        return self.upstream.seen

    async def user(self, user_id: str, **fields: Any) -> str:
        """Makes a user and returns an API key of theirs."""
        users = self.weir.engine.users
        await users.create(parse_new(json.dumps({"user_id": user_id, **fields}).encode()))
        return (await ApiKeys(users).mint(user_id, NewKey())).secret

    async def update(self, user_id: str, **fields: Any) -> None:
        await self.weir.engine.users.update(parse_update(json.dumps({"user_id": user_id, **fields}).encode()))

    async def standing(self, user_id: str) -> Standing:
        """Where a user stands, without counting anything: an admission that is taken back."""
        ask = Ask(request_id=f"look-{next(self._ids)}", user_id=user_id, key_hash="")
        decision = await self.weir.engine.store.admit(ask)
        assert not isinstance(decision, (CallerRefused, AliasOf)), decision
        stood = decision.standing
        if "limit" not in decision.__struct_fields__:
            await self.weir.engine.store.settle(Settlement(request_id=ask.request_id, user_id=user_id, cancelled=True))
            stood = msgspec.structs.replace(stood, rpm_used=stood.rpm_used - 1)
        return msgspec.structs.replace(stood, parallel_used=self.leases(user_id))

    def leases(self, user_id: str) -> int:
        """Requests of a user in flight, whether there is a limit of them or not."""
        with redis.from_url(self.redis_url) as client:
            leases: Any = client.hvals(user_keys(user_id).leases.decode())
            return sum(len(lease) != TOMBSTONE_BYTES for lease in leases)

    async def used(self, user_id: str) -> tuple[int, int, int]:
        """Requests, tokens and slots of a user."""
        stood = await self.standing(user_id)
        return stood.rpm_used, stood.tpm_used, stood.parallel_used

    async def spend_nanos(self, user_id: str) -> int:
        return (await self.standing(user_id)).budget_used_nanos

    async def idle(self) -> None:
        """Waits until every settlement has reached the store."""
        await self.weir.engine.store.drain()

    async def chat(
        self, key: str, *, path: str = "/v1/chat/completions", headers: Any = (), **body: Any
    ) -> httpx.Response:
        content = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], **body}
        return await self.http.post(path, json=content, headers={"authorization": f"Bearer {key}", **dict(headers)})

    async def raw(self, request: bytes, *, patience_s: float = PATIENCE_S) -> bytes:
        """Sends bytes over a socket and returns all that comes back until the gate closes or is silent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            received = b""
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(patience_s):
                    while part := await reader.read(65_536):
                        received += part
            return received
        finally:
            writer.transport.abort()

    def dump(self) -> dict[bytes, Any]:
        """Everything the store holds."""
        with redis.from_url(self.redis_url) as client:
            return {key: client.dump(key) for key in client.scan_iter(count=10_000)}


def statuses(received: bytes) -> list[int]:
    """The statuses of the answers in what came over a raw socket."""
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3})", received)]


async def eventually(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Waits until something holds, looking at every turn of the loop; fails when it does not in time."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = holds()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def staged(redis_url: str, folder: Path, *, answer: Answer = speak, **settings: Any) -> AsyncIterator[Stage]:
    """The gate in front of a scripted upstream."""
    upstream = Upstream(answer)
    async with Served(upstream) as behind:
        weir = front(settings_of(redis_url, folder, upstream=behind.url, **settings))
        async with _stage(weir, upstream, redis_url) as stage:
            yield stage


@contextlib.asynccontextmanager
async def around(
    redis_url: str, folder: Path, *, answer: Answer = speak, app: App | None = None, **settings: Any
) -> AsyncIterator[Stage]:
    """The gate as a middleware around the scripted app, or around `app`."""
    upstream = Upstream(answer)
    given = {"price_file": prices(folder), "data_dir": folder, "master_key": MASTER_KEY, **settings}
    weir = RateLimitMiddleware(app or upstream, redis_url=redis_url, **given)
    async with _stage(weir, upstream, redis_url) as stage:
        yield stage


@contextlib.asynccontextmanager
async def _stage(weir: Weir, upstream: Upstream, redis_url: str) -> AsyncIterator[Stage]:
    async with Served(weir) as gate, httpx.AsyncClient(base_url=gate.url, timeout=PATIENCE_S) as client:
        yield Stage(weir, upstream, gate.port, redis_url, client)


def settings_of(redis_url: str, folder: Path, **settings: Any) -> Settings:
    given = {
        "price_file": prices(folder), "data_dir": folder, "master_key": MASTER_KEY, "store_timeout_ms": 10_000,
        **settings,
    }  # fmt: skip
    return Settings(redis_url=redis_url, **given)


def prices(folder: Path) -> Path:
    path = folder / "prices.json"
    path.write_text(json.dumps(PRICES))
    return path


def empty(redis_url: str) -> None:
    with redis.from_url(redis_url) as client:
        client.flushall()
