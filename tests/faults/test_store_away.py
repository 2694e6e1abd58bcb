"""The store is away, and `on_store_failure` is closed: everybody is told so at once, and it costs nobody anything."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
from tests.faults.calls import Heard, request
from tests.faults.house import House, house
from tests.faults.tally import MODEL
from tests.faults.waiting import until_async

pytestmark = pytest.mark.faults

AT_ONCE_S = 1.0
"""What counts as at once on a busy machine; `store_timeout_ms` is set to more."""
SLACK_S = 3.0
OPENAI = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
DIALECTS = [
    pytest.param("/v1/chat/completions", OPENAI, ("error", "type"), "server_error", id="openai"),
    pytest.param("/v1/messages", {**OPENAI, "max_tokens": 5}, ("error", "type"), "overloaded_error", id="anthropic"),
    pytest.param(
        f"/v1beta/models/{MODEL}:generateContent",
        {"contents": [{"parts": [{"text": "hi"}]}]},
        ("error", "status"),
        "UNAVAILABLE",
        id="gemini",
    ),
]


@pytest.mark.parametrize(("path", "body", "where", "says"), DIALECTS)
async def test_a_store_that_is_away_is_503_with_retry_after_1_in_every_dialect(
    tmp_path: Path, path: str, body: dict[str, object], where: tuple[str, str], says: str
) -> None:
    async with house(tmp_path) as built:
        ana = await built.admin.caller(built.worker, "ana", max_budget=1)
        await _cut_off(built)
        heard = await request(built.session, built.worker, path, {"authorization": f"Bearer {ana.key}"}, body)
        assert (heard.status, heard.headers["retry-after"]) == (503, "1"), heard.body
        assert json.loads(heard.body)[where[0]][where[1]] == says
        assert "127.0.0.1" not in heard.body.decode()


async def test_once_the_circuit_is_open_the_answer_comes_at_once_and_it_closes_within_about_a_second(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, store_timeout_ms=4000) as built:
        ana = await built.admin.caller(built.worker, "ana", rpm_limit=5, max_budget=1)
        await _cut_off(built)
        heard = await asyncio.gather(*(ana.chat(built.worker) for _ in range(50)))
        assert {one.status for one in heard} == {503}
        assert max(one.took_s for one in heard) < AT_ONCE_S * 3
        await built.wire.accept()
        back_s = time.monotonic()

        async def passes() -> bool:
            return (await ana.chat(built.worker)).status == 200

        await until_async(passes, "a request passes again")
        assert time.monotonic() - back_s < 1.0 + SLACK_S
        books = await built.balanced("ana")
        assert books.days_requests == 1
        assert [(await ana.chat(built.worker)).status for _ in range(5)] == [200] * 4 + [429]


async def test_hundreds_of_requests_while_redis_is_paused_are_each_answered_in_time_and_do_not_pile_up(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, store_timeout_ms=500) as built:
        ana = await built.admin.caller(built.worker, "ana", max_budget=1)
        await _hundred(built, ana.key)  # memory for so many connections at once is taken now
        before = built.worker.resident_bytes()
        with built.redis.paused():
            heard = [one for _ in range(6) for one in await _hundred(built, ana.key)]
        assert {one.status for one in heard} == {503}
        assert max(one.took_s for one in heard) < 0.5 + SLACK_S
        assert built.worker.resident_bytes() - before < 20_000_000
        await built.all_ready()
        assert (await ana.chat(built.worker)).status == 200
        books = await built.balanced("ana")
        assert books.leases == 0


async def test_admin_routes_and_readiness_say_why_they_are_503(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        await built.admin.caller(built.worker, "ana")
        await _cut_off(built)
        readiness = await built.admin.get(built.worker, "/health/readiness")
        assert readiness.status == 503
        assert json.loads(readiness.body)["reason"]
        info = await built.admin.get(built.worker, "/user/info?user_id=ana")
        assert info.status == 503
        assert json.loads(info.body)["error"]["message"]
        assert (await built.admin.get(built.worker, "/health/liveliness")).status == 200
        assert await built.admin.metric(built.worker, "llmweir_store_up") == 0
        await built.wire.accept()
        await built.all_ready()
        assert (await built.admin.get(built.worker, "/user/info?user_id=ana")).status == 200


async def test_a_worker_that_starts_while_redis_is_away_serves_as_soon_as_it_is_there(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        ana = await built.admin.caller(built.worker, "ana")
        built.worker.kill()
        built.redis.kill()
        await built.worker.start()
        assert (await ana.chat(built.worker)).status == 503
        await built.redis.start()
        await built.all_ready()
        assert (await ana.chat(built.worker)).status == 200
        await built.balanced("ana")


async def _cut_off(built: House) -> None:
    """Takes Redis away, and waits until the worker has seen it."""
    built.wire.refuse()
    built.wire.reset()

    async def is_seen() -> bool:
        return not await built.admin.is_ready(built.worker)

    await until_async(is_seen, "the worker sees that Redis is away")


async def _hundred(built: House, key: str) -> list[Heard]:
    headers = {"authorization": f"Bearer {key}"}
    path = "/v1/chat/completions"
    return await asyncio.gather(*(request(built.session, built.worker, path, headers, OPENAI) for _ in range(100)))
