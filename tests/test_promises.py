"""The promises of the design, proved over HTTP: the gate is served by uvicorn, the store is a real server.

P3, P4, P5 and P11 are the store's own; `tests/engine` proves them. P9 is proved field by field in `tests/admin`.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

import hiredis
import httpx
import pytest
import redis
from tests.harness import (
    COST_NANOS,
    MASTER_KEY,
    PATIENCE_S,
    TOKENS,
    Seen,
    Served,
    Stage,
    Upstream,
    around,
    chat_answer,
    empty,
    eventually,
    held,
    plain,
    prices,
    speak,
    staged,
    statuses,
)

from llmweir.traffic.asgi import Send

UrlOf = Callable[[str], str]
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}


class RecordingProxy:
    """Stands before Redis and writes down every command, and whatever else is told to it, in order."""

    def __init__(self, redis_url: str) -> None:
        self._path = redis_url.removeprefix("unix://").replace("%2F", "/")
        self.log: list[str] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there, back = await asyncio.open_unix_connection(self._path)
        try:
            await asyncio.gather(self._pump(reader, back, self._note()), self._pump(there, writer, lambda _: None))
        finally:
            writer.transport.abort()
            back.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, note: Callable[[bytes], None]
    ) -> None:
        while data := await reader.read(65_536):
            note(data)
            writer.write(data)
            await writer.drain()
        writer.close()

    def _note(self) -> Callable[[bytes], None]:
        parser = hiredis.Reader()

        def note(data: bytes) -> None:
            parser.feed(data)
            while isinstance(command := parser.gets(), list):
                self.log.append(command[0].decode())

        return note


@pytest.fixture
def valkey(url_of: UrlOf) -> str:
    """The URL of an emptied store."""
    url = url_of("valkey")
    empty(url)
    return url


@pytest.fixture
async def recorded(valkey: str) -> AsyncIterator[RecordingProxy]:
    async with RecordingProxy(valkey) as recorder:
        yield recorder


async def commands_of(stage: Stage, recorder: RecordingProxy, request: Callable[[], Any]) -> list[str]:
    """The commands of one request, once everything of it has reached the store."""
    await stage.idle()
    recorder.log.clear()
    await request()
    await stage.idle()
    return list(recorder.log)


# P1: one round trip.


def noting(recorder: RecordingProxy) -> Callable[[Seen, Send], Any]:
    async def answer(seen: Seen, send: Send) -> None:
        recorder.log.append("app")
        await speak(seen, send)

    return answer


ADMITTED_BODIES: dict[str, dict[str, Any]] = {
    "a plain answer": {},
    "a stream": {"stream": True},
    "an alias": {"model": "fast"},
}


@pytest.mark.parametrize("body", ADMITTED_BODIES.values(), ids=ADMITTED_BODIES)
async def test_p1_a_request_is_one_script_call_before_the_app_and_one_after(
    recorded: RecordingProxy, tmp_path: Path, body: dict[str, Any]
) -> None:
    async with staged(recorded.url, tmp_path, answer=noting(recorded)) as stage:
        limits = {"rpm_limit": 100, "tpm_limit": 10**6, "max_budget": 10, "max_parallel_requests": 9}
        key = await stage.user("ann", aliases={"fast": "gpt-4o"}, model_rpm_limit={"gpt-4o": 50}, **limits)
        await stage.chat(key, **body)
        for _ in range(3):
            commands = await commands_of(stage, recorded, lambda: stage.chat(key, **body))
            assert commands == ["EVALSHA", "app", "EVALSHA"]


async def test_p1_callers_the_app_names_cost_the_same(recorded: RecordingProxy, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"identify": lambda scope: "bob", "default_user": {"rpm_limit": 100}}
    async with around(recorded.url, tmp_path, answer=noting(recorded), **settings) as stage:
        await stage.http.post("/v1/chat/completions", json=CHAT)
        commands = await commands_of(stage, recorded, lambda: stage.http.post("/v1/chat/completions", json=CHAT))
        assert commands == ["EVALSHA", "app", "EVALSHA"]


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "no requests left": ({"rpm_limit": 0}, {}, 429),
    "too many tokens": ({"tpm_limit": 10}, {"max_tokens": 50}, 429),
    "no budget": ({"max_budget": 0}, {}, 429),
    "blocked": ({"blocked": True}, {}, 403),
    "model not allowed": ({"models": ["gpt-4o-mini"]}, {}, 403),
    "no price": ({"max_budget": 1}, {"model": "nobody-sells-this"}, 400),
}


@pytest.mark.parametrize(("fields", "body", "status"), REFUSED.values(), ids=REFUSED)
async def test_p1_a_refusal_is_one_script_call(
    recorded: RecordingProxy, tmp_path: Path, fields: dict[str, Any], body: dict[str, Any], status: int
) -> None:
    async with staged(recorded.url, tmp_path, answer=noting(recorded)) as stage:
        key = await stage.user("ann", **fields)
        await stage.chat(key, **body)

        async def refused() -> None:
            assert (await stage.chat(key, **body)).status_code == status

        assert await commands_of(stage, recorded, refused) == ["EVALSHA"]


async def test_p1_what_cannot_be_read_costs_no_call_at_all(recorded: RecordingProxy, tmp_path: Path) -> None:
    async with staged(recorded.url, tmp_path, answer=noting(recorded)) as stage:
        key = await stage.user("ann")
        await stage.chat(key)
        assert await commands_of(stage, recorded, lambda: stage.chat(key, model=7)) == []


# P2: all or nothing.


REFUSED_WHEN_FULL: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = REFUSED | {
    "requests used up": ({"rpm_limit": 1}, {}, 429),
    "tokens used up": ({"tpm_limit": TOKENS + 5}, {}, 429),
    "requests of the model used up": ({"model_rpm_limit": {"gpt-4o": 1}, "tpm_limit": 10**6, "max_budget": 9}, {}, 429),
    "tokens of the model used up": ({"model_tpm_limit": {"gpt-*": TOKENS + 5}, "rpm_limit": 100}, {}, 429),
    "budget spent": ({"max_budget": COST_NANOS / 1e9, "rpm_limit": 100}, {}, 429),
    "budget of the model spent": ({"model_max_budget": {"gpt-4o": COST_NANOS / 1e9}, "rpm_limit": 100}, {}, 429),
    "can never fit": ({"tpm_limit": 1000, "rpm_limit": 90, "max_budget": 9}, {"max_tokens": 2000}, 429),
    "cache control": ({"allowed_cache_controls": ["ttl"]}, {"cache": {"no-cache": True}}, 403),
    "role": ({"user_role": "internal_user_viewer"}, {}, 403),
}


@pytest.mark.parametrize(("fields", "body", "status"), REFUSED_WHEN_FULL.values(), ids=REFUSED_WHEN_FULL)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_p2_a_refused_request_changes_nothing_in_the_store(
    valkey: str, tmp_path: Path, fields: dict[str, Any], body: dict[str, Any], status: int, stream: bool
) -> None:
    async with staged(valkey, tmp_path) as stage:
        key = await stage.user("ann", **fields)
        await stage.chat(key, stream=stream)
        await stage.idle()
        before, arrived = stage.dump(), len(stage.seen)
        answers = await asyncio.gather(*(stage.chat(key, stream=stream, **body) for _ in range(5)))
        await stage.idle()
        assert {answer.status_code for answer in answers} == {status}
        assert stage.dump() == before
        assert len(stage.seen) == arrived


async def test_p2_of_many_at_once_exactly_the_limit_passes_and_only_that_is_counted(
    valkey: str, tmp_path: Path
) -> None:
    async with staged(valkey, tmp_path) as stage:
        key = await stage.user("ann", rpm_limit=7, tpm_limit=10**6, max_budget=10)
        answers = await asyncio.gather(*(stage.chat(key) for _ in range(30)))
        await stage.idle()
        assert sorted(answer.status_code for answer in answers) == [200] * 7 + [429] * 23
        assert len(stage.seen) == 7
        assert await stage.used("ann") == (7, 7 * TOKENS, 0)
        assert await stage.spend_nanos("ann") == 7 * COST_NANOS


# P4, seen from outside: what is held while a request runs is what the headers and the store say.


async def test_p4_tokens_and_money_are_held_while_the_app_runs_and_corrected_after(valkey: str, tmp_path: Path) -> None:
    go = asyncio.Event()
    async with staged(valkey, tmp_path, answer=held(go, plain(b"{}"))) as stage:
        key = await stage.user("ann", tpm_limit=10**6, max_budget=10)
        running = asyncio.create_task(stage.chat(key, max_tokens=500))
        await eventually(lambda: len(stage.seen) == 1)
        during = await stage.standing("ann")
        assert during.tpm_used > 500
        assert during.budget_used_nanos > 500 * 10_000
        stage.upstream.answer = speak
        go.set()
        await running
        await stage.chat(key)
        await stage.idle()
        after = await stage.standing("ann")
        assert after.tpm_used < 500
        assert after.parallel_used == 0


# P6: exactly once.


async def test_p6_a_settlement_that_is_sent_twice_charges_once(valkey: str, tmp_path: Path) -> None:
    async with staged(valkey, tmp_path) as stage:
        key = await stage.user("ann", tpm_limit=10**6, max_budget=10)
        store = stage.weir.engine.store
        settle, sent = store.settle, []

        def twice(settlement: Any) -> Any:
            sent.append(settlement)
            settle(settlement)
            return settle(settlement)

        store.settle = twice  # type: ignore[method-assign]
        await stage.chat(key)
        await stage.chat(key, stream=True)
        await stage.idle()
        assert len(sent) == 2
        assert await stage.used("ann") == (2, 2 * TOKENS, 0)
        assert await stage.spend_nanos("ann") == 2 * COST_NANOS


async def test_p6_an_admission_that_is_sent_twice_counts_once(valkey: str, tmp_path: Path) -> None:
    async with staged(valkey, tmp_path) as stage:
        key = await stage.user("ann", rpm_limit=1, tpm_limit=10**6, max_budget=10)
        store = stage.weir.engine.store
        admit = store.admit

        async def twice(ask: Any) -> Any:
            await admit(ask)
            return await admit(ask)

        store.admit = twice  # type: ignore[method-assign]
        answer = await stage.chat(key)
        store.admit = admit  # type: ignore[method-assign]
        await stage.idle()
        assert answer.status_code == 200
        assert await stage.used("ann") == (1, TOKENS, 0)


# P7 and P8: worker processes.


class Worker:
    """`llmweir serve` in a process of its own."""

    def __init__(self, redis_url: str, upstream: str, folder: Path, **settings: Any) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        given = {
            "redis_url": redis_url, "upstream": upstream, "port": self.port, "master_key": MASTER_KEY,
            "price_file": prices(folder), "data_dir": folder, "store_timeout_ms": 10_000, **settings,
        }  # fmt: skip
        self._env = {**os.environ, **{f"LLMWEIR_{name.upper()}": str(value) for name, value in given.items()}}
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    async def __aenter__(self) -> Self:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "llmweir.cli", "serve", env=self._env, stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(30):
            while True:
                try:
                    if (await self.http.get("/health/readiness")).status_code == 200:
                        return self
                except httpx.TransportError:
                    assert self.process.returncode is None, "the worker ended while it started"
                await asyncio.sleep(0.02)

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            await self.process.wait()

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    async def admin(self, path: str, **body: Any) -> Any:
        answer = await self.http.post(path, json=body, headers={"authorization": f"Bearer {MASTER_KEY}"})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def chat(self, key: str, **body: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        return await self.http.post("/v1/chat/completions", json={**CHAT, **body}, headers=headers)

    async def record(self, user_id: str) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {MASTER_KEY}"}
        answer = await self.http.get("/user/info", params={"user_id": user_id}, headers=headers)
        record: dict[str, Any] = answer.json()["user_info"]
        return record


async def test_p7_a_killed_worker_frees_its_slots_within_the_lease_and_what_it_held_is_charged(
    valkey: str, tmp_path: Path
) -> None:
    never = asyncio.Event()
    upstream = Upstream(held(never, speak))
    leases = {"lease_ttl_s": 2, "lease_renew_s": 1}
    async with (
        Served(upstream) as behind,
        Worker(valkey, behind.url, tmp_path, **leases) as one,
        Worker(valkey, behind.url, tmp_path, **leases) as other,
    ):
        made = await one.admin("/user/new", user_id="ann", max_parallel_requests=3, max_budget=10)
        key = made["key"]
        running = [asyncio.create_task(one.chat(key, max_tokens=100)) for _ in range(3)]
        await eventually(lambda: len(upstream.seen) == 3)
        # Their heartbeat keeps the slots for longer than a lease lives.
        busy_until = time.monotonic() + 2.5
        while time.monotonic() < busy_until:
            assert (await other.chat(key)).json()["error"]["code"] == "parallel_limit_exceeded"
            await asyncio.sleep(0.05)
        reserved = (await other.record("ann"))["reserved"]
        await one.kill()
        killed_s = time.monotonic()
        await asyncio.gather(*running, return_exceptions=True)
        upstream.answer = speak

        async def free() -> bool:
            return (await other.chat(key)).status_code == 200

        await eventually(free)
        assert time.monotonic() - killed_s < 2.5
        after = await other.record("ann")
        assert reserved > 0
        assert after["reserved"] == 0
        assert round(after["spend"] * 1e9) == round(reserved * 1e9) + COST_NANOS


BOUND_NEXT: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], int, str]] = {
    "rpm": ({}, {"rpm_limit": 0}, {}, 429, "rate_limit_exceeded"),
    "tpm": ({}, {"tpm_limit": 10}, {"max_tokens": 50}, 429, "request_too_large"),
    "parallel": ({}, {"max_parallel_requests": 0}, {}, 429, "parallel_limit_exceeded"),
    "budget": ({}, {"max_budget": 0}, {}, 429, "insufficient_quota"),
    "spend": ({"max_budget": 1}, {"spend": 1}, {}, 429, "insufficient_quota"),
    "model rpm": ({}, {"model_rpm_limit": {"gpt-4o": 0}}, {}, 429, "rate_limit_exceeded"),
    "model tpm": ({}, {"model_tpm_limit": {"gpt-*": 10}}, {"max_tokens": 50}, 429, "request_too_large"),
    "model budget": ({}, {"model_max_budget": {"gpt-4o": 0}}, {}, 429, "insufficient_quota"),
    "allow-list": ({}, {"models": ["claude-*"]}, {}, 403, "model_not_allowed"),
    "blocked": ({}, {"blocked": True}, {}, 403, "user_blocked"),
    "role": ({}, {"user_role": "internal_user_viewer"}, {}, 403, "role_not_allowed"),
    "cache controls": (
        {}, {"allowed_cache_controls": ["ttl"]}, {"cache": {"no-cache": True}}, 403, "cache_control_not_allowed",
    ),
    "alias to a model not allowed": (
        {"models": ["gpt-4o"]}, {"aliases": {"gpt-4o": "claude-opus"}}, {}, 403, "model_not_allowed",
    ),
}  # fmt: skip


async def test_p8_a_change_through_one_worker_binds_the_next_request_on_another(valkey: str, tmp_path: Path) -> None:
    upstream = Upstream(speak)
    async with (
        Served(upstream) as behind,
        Worker(valkey, behind.url, tmp_path) as one,
        Worker(valkey, behind.url, tmp_path) as other,
    ):
        for number, (name, (fields, change, body, status, code)) in enumerate(BOUND_NEXT.items()):
            user_id = f"user-{number}"
            key = (await one.admin("/user/new", user_id=user_id, **fields))["key"]
            for worker in (one, other):
                assert (await worker.chat(key, **body)).status_code == 200, name
            for admin, worker in ((one, other), (other, one)):
                await admin.admin("/user/update", user_id=user_id, **change)
                refused = await worker.chat(key, **body)
                assert (refused.status_code, refused.json()["error"]["code"]) == (status, code), name
                undone = {field: fields.get(field) for field in change}
                await admin.admin("/user/update", user_id=user_id, **undone)
                assert (await worker.chat(key, **body)).status_code == 200, name


async def test_p8_an_alias_and_what_is_handed_on_change_with_the_next_request(valkey: str, tmp_path: Path) -> None:
    upstream = Upstream(speak)
    async with (
        Served(upstream) as behind,
        Worker(valkey, behind.url, tmp_path) as one,
        Worker(valkey, behind.url, tmp_path) as other,
    ):
        key = (await one.admin("/user/new", user_id="ann", aliases={"fast": "gpt-4o"}))["key"]
        for target in ("gpt-4o", "gpt-4o-mini", "gpt-4o"):
            change = {"aliases": {"fast": target}, "metadata": {"on": target}, "guardrails": [target]}
            await one.admin("/user/update", user_id="ann", user_role="customer", user_alias=target, **change)
            answer = await other.chat(key, model="fast")
            assert answer.status_code == 200, answer.text
            seen = upstream.seen[-1]
            assert seen.json()["model"] == target
            assert json.loads(seen.header(b"x-llmweir-metadata") or b"") == {"on": target}
            assert json.loads(seen.header(b"x-llmweir-guardrails") or b"") == [target]
            assert seen.header(b"x-llmweir-user-alias") == target.encode()


# P10: honest answers.

LIMIT_HEADERS = {
    f"x-ratelimit-{part}-{kind}" for part in ("limit", "remaining", "reset") for kind in ("requests", "tokens")
}
ANTHROPIC_HEADERS = {
    f"anthropic-ratelimit-{kind}-{part}" for part in ("limit", "remaining", "reset") for kind in ("requests", "tokens")
}
BUDGET_HEADERS = {"x-llmweir-budget-limit-usd", "x-llmweir-budget-remaining-usd"}
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "chat, streamed": ("/v1/chat/completions", {**CHAT, "stream": True}),
    "responses, streamed": ("/v1/responses", {"model": "gpt-4o", "input": "hi", "stream": True}),
    "embeddings": ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "hi"}),
    "messages": ("/v1/messages", {**CHAT, "model": "claude-test-1", "max_tokens": 50}),
    "messages, streamed": ("/v1/messages", {**CHAT, "model": "claude-test-1", "max_tokens": 50, "stream": True}),
    "gemini": ("/v1beta/models/gemini-2.5-flash:generateContent", {"contents": []}),
    "gemini, streamed": ("/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse", {"contents": []}),
}


@pytest.mark.parametrize(("path", "body"), CALLS.values(), ids=CALLS)
async def test_p10_every_answer_says_where_the_limits_stand(
    valkey: str, tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    async with staged(valkey, tmp_path) as stage:
        limits = {"rpm_limit": 2, "tpm_limit": 30_000, "max_budget": 1.5, "budget_duration": "30d"}
        key = await stage.user("ann", **limits)
        answers = [await stage.http.post(path, json=body, headers={"authorization": f"Bearer {key}"}) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        expected = LIMIT_HEADERS | BUDGET_HEADERS | {"x-llmweir-budget-reset", "ratelimit", "ratelimit-policy"}
        if path == "/v1/messages":
            expected |= ANTHROPIC_HEADERS
        for number, answer in enumerate(answers):
            ours = {name for name in answer.headers if "ratelimit" in name or name.startswith("x-llmweir-budget")}
            assert ours == expected
            assert answer.headers["x-ratelimit-limit-requests"] == "2"
            assert answer.headers["x-ratelimit-remaining-requests"] == str(max(0, 1 - number))
            assert answer.headers["ratelimit-policy"] == '"user-rpm";q=2;w=60, "user-tpm";q=30000;w=60'
            assert answer.headers["x-llmweir-budget-limit-usd"] == "1.5"
            is_plain = answer.status_code == 200 and "stream" not in (answer.headers["content-type"])
            assert ("x-llmweir-cost-usd" in answer.headers) == is_plain


async def test_p10_a_refusal_says_whose_limit_which_used_asked_and_the_true_time_to_wait(
    valkey: str, tmp_path: Path
) -> None:
    usage = {"prompt_tokens": 600, "completion_tokens": 400, "total_tokens": 1000}
    async with staged(valkey, tmp_path, answer=plain(chat_answer(usage))) as stage:
        key = await stage.user("ann", user_alias="Ann B.", tpm_limit=1100, rpm_limit=50)
        await stage.chat(key)
        await stage.idle()
        refused = await stage.chat(key)
        message = refused.json()["error"]["message"]
        pattern = (
            r"Rate limit reached for gpt-4o for user Ann B\. on tokens per min \(TPM\): "
            r"limit 1100, used (\d+), requested (\d+)\. Please try again in ((?:\d+m)?[\d.]+m?s)\."
        )
        match = re.fullmatch(pattern, message)
        assert match is not None, message
        assert int(match[1]) == 1000
        assert int(match[2]) > 400
        wait_ms = int(refused.headers["retry-after-ms"])
        assert int(refused.headers["retry-after"]) == min(60, math.ceil(wait_ms / 1000))
        assert 59_000 <= wait_ms <= 61_000
        assert refused.headers["cache-control"] == "no-store"
        assert refused.headers["x-request-id"]
        assert "x-should-retry" not in refused.headers


async def test_p10_waiting_as_long_as_told_is_enough_and_not_much_too_long(valkey: str, tmp_path: Path) -> None:
    async with staged(valkey, tmp_path) as stage:
        now_ms = 1_800_000_000_000
        store = stage.weir.engine.store
        store._clock = lambda: now_ms
        key = await stage.user("ann", rpm_limit=3)
        for _ in range(3):
            assert (await stage.chat(key)).status_code == 200
            now_ms += 7_300
        wait_ms = int((await stage.chat(key)).headers["retry-after-ms"])
        now_ms += wait_ms - 1_001
        assert (await stage.chat(key)).status_code == 429
        now_ms += 1_001
        assert (await stage.chat(key)).status_code == 200


async def test_p10_a_store_that_refuses_commands_is_a_503_and_nothing_passes(valkey: str, tmp_path: Path) -> None:
    async with staged(valkey, tmp_path) as stage:
        key = await stage.user("ann", rpm_limit=10)
        await stage.chat(key)
        await stage.idle()
        with redis.from_url(valkey) as client:
            client.config_set("maxmemory", 1)
            try:
                refused = await stage.chat(key)
            finally:
                client.config_set("maxmemory", 0)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
        assert refused.headers["retry-after"] == "1"
        assert (await stage.chat(key)).status_code == 200
        assert len(stage.seen) == 2


# P12: nothing slips by.

UNKNOWN: dict[str, tuple[str, str]] = {
    "the root": ("GET", "/"),
    "an endpoint nobody knows": ("POST", "/v1/realtime/sessions"),
    "files": ("POST", "/v1/files"),
    "batches": ("POST", "/v1/batches"),
    "fine-tuning": ("POST", "/v1/fine_tuning/jobs"),
    "a known one by GET": ("GET", "/v1/chat/completions"),
    "a known one by PUT": ("PUT", "/v1/chat/completions"),
    "a known one by HEAD": ("HEAD", "/v1/chat/completions"),
    "a known one by OPTIONS": ("OPTIONS", "/v1/chat/completions"),
    "a known one by a method made up": ("BREW", "/v1/chat/completions"),
    "a known one with more behind it": ("POST", "/v1/chat/completions/more"),
    "another version": ("POST", "/v2/chat/completions"),
    "another action of a model": ("POST", "/v1beta/models/gemini-2.5-flash:predict"),
    "a listing's method": ("POST", "/v1/models"),
}


@pytest.mark.parametrize(("method", "path"), UNKNOWN.values(), ids=UNKNOWN)
async def test_p12_in_front_a_path_of_no_known_format_is_refused(
    valkey: str, tmp_path: Path, method: str, path: str
) -> None:
    async with staged(valkey, tmp_path) as stage:
        key = await stage.user("ann")
        request = f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n"
        received = await stage.raw(request.encode())
        assert statuses(received) in ([404], [400])
        assert stage.seen == []


@pytest.mark.parametrize(("method", "path"), UNKNOWN.values(), ids=UNKNOWN)
async def test_p12_without_a_key_there_is_no_way_in(valkey: str, tmp_path: Path, method: str, path: str) -> None:
    async with staged(valkey, tmp_path, free_paths=["/v1/models*"]) as stage:
        request = f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        received = await stage.raw(request.encode())
        assert statuses(received) in ([401], [400])
        assert stage.seen == []


@pytest.mark.parametrize(("method", "path"), UNKNOWN.values(), ids=UNKNOWN)
async def test_p12_around_an_app_a_path_of_no_known_format_counts_as_one_request(
    valkey: str, tmp_path: Path, method: str, path: str
) -> None:
    async with around(valkey, tmp_path, answer=plain(b"{}")) as stage:
        key = await stage.user("ann", rpm_limit=10)
        request = f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n"
        received = await stage.raw(request.encode())
        await stage.idle()
        passed = len(stage.seen)
        assert passed == statuses(received).count(200)
        assert await stage.used("ann") == (passed, 0, 0)


async def test_p12_a_free_path_needs_a_key_and_counts_nothing(valkey: str, tmp_path: Path) -> None:
    async with staged(valkey, tmp_path, answer=plain({"data": []})) as stage:
        key = await stage.user("ann", rpm_limit=1)
        for _ in range(3):
            answer = await stage.http.get("/v1/models", headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == 200
        assert (await stage.http.get("/v1/models")).status_code == 401
        assert await stage.used("ann") == (0, 0, 0)
        await stage.update("ann", blocked=True)
        answer = await stage.http.get("/v1/models", headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 403
        assert len(stage.seen) == 3


async def test_p12_an_open_path_needs_no_key(valkey: str, tmp_path: Path) -> None:
    async with staged(valkey, tmp_path, answer=plain(b"{}"), open_paths=["GET /status*"]) as stage:
        assert (await stage.http.get("/status/now")).status_code == 200
        assert (await stage.http.post("/status/now")).status_code == 401
        assert len(stage.seen) == 1
