"""A reply is lost, or late: nobody is charged for what was refused, nor twice for what was served."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import cast

import pytest
from tests.faults.calls import Caller
from tests.faults.house import House, house
from tests.faults.load import load
from tests.faults.upstream import Play
from tests.faults.waiting import until, until_async

from llmweir.engine import scripts

pytestmark = pytest.mark.faults

ADMIT, SETTLE = scripts.load("admit").sha, scripts.load("settle").sha
"""What the calls of the scripts are known by on the wire."""


async def test_p6_an_admission_whose_reply_is_lost_is_503_and_consumes_nothing(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        ana = await _caller_with_one_request_a_minute(built)
        built.wire.drop_reply_to = ADMIT
        heard = await ana.chat(built.worker)
        assert built.wire.dropped == 1
        assert (heard.status, heard.code) == (503, "store_unavailable")
        await _nothing_was_consumed(built, ana)


async def test_p6_an_admission_stuck_on_the_way_and_carried_out_after_its_cancel_counts_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, store_timeout_ms=500) as built:
        ana = await _caller_with_one_request_a_minute(built)
        built.wire.strand()
        assert (await ana.chat(built.worker)).status == 503
        await built.all_ready()  # over a new connection, which the cancel takes too
        await until_async(lambda: _settled(built), "the cancel is delivered")
        calls = _script_calls(built)
        built.wire.open()
        await until(lambda: _script_calls(built) > calls, "the admission is carried out")
        await _nothing_was_consumed(built, ana)


async def test_p6_a_settlement_stuck_on_the_way_and_carried_out_after_its_repetition_is_charged_once(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, store_timeout_ms=500, lease_ttl_s=30) as built:
        ana = await built.admin.caller(built.worker, "ana", max_budget=1)
        running = asyncio.create_task(ana.chat(built.worker, Play(2, 0.1)))
        await built.at_work("ana", 1)
        built.wire.strand()
        assert (await running).status == 200
        await built.all_ready()
        await built.balanced("ana")
        calls = _script_calls(built)
        built.wire.open()
        await until(lambda: _script_calls(built) > calls, "the first settlement is carried out")
        books = await built.balanced("ana")
        assert (books.days_requests, books.spent) == (1, built.tally.cost_nanos("ana"))


async def test_p6_an_admission_stuck_in_a_paused_redis_counts_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, store_timeout_ms=500) as built:
        ana = await _caller_with_one_request_a_minute(built)
        with built.redis.paused():
            assert (await ana.chat(built.worker)).status == 503
        await _nothing_was_consumed(built, ana)


async def test_p6_a_settlement_whose_reply_is_lost_is_charged_once(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        ana = await built.admin.caller(built.worker, "ana", max_budget=1)
        running = asyncio.create_task(ana.chat(built.worker, Play(2, 0.1)))
        await built.at_work("ana", 1)
        built.wire.drop_reply_to = SETTLE
        assert (await running).status == 200
        await until(lambda: built.wire.dropped == 1, "the reply to the settlement is lost")
        books = await built.balanced("ana")
        assert (books.days_requests, books.spent) == (1, built.tally.cost_nanos("ana"))


async def test_p6_settlements_held_by_a_partition_are_charged_once_when_it_heals(tmp_path: Path) -> None:
    async with house(tmp_path, store_timeout_ms=500, lease_ttl_s=30, lease_renew_s=1) as built:
        ana = await built.admin.caller(built.worker, "ana", max_budget=1)
        running = [asyncio.create_task(ana.chat(built.worker, Play(2, 0.1))) for _ in range(20)]
        await built.at_work("ana", 20)
        built.wire.shut("back")  # the settlements arrive, the replies do not
        assert [heard.status for heard in await asyncio.gather(*running)] == [200] * 20
        assert (await ana.chat(built.worker)).status == 503
        built.wire.open()
        await built.all_ready()
        books = await built.balanced("ana")
        assert books.days_requests == 20
        assert await built.admin.metric(built.worker, "llmweir_outbox_records") == 0


async def test_p6_resets_under_load_lose_nothing_and_let_nobody_past_a_limit(tmp_path: Path) -> None:
    async with house(tmp_path, workers=2, lease_ttl_s=30) as built:
        ana = await built.admin.caller(built.worker, "ana", max_budget=1, rpm_limit=120, max_parallel_requests=8)
        async with load([ana] * 12, built.workers) as running:
            for _ in range(8):
                await running.goes_on()
                built.wire.reset()
        assert set(running.statuses) <= {200, 429, 503}
        await built.balanced("ana")
        assert built.tally.most_in_flight("ana") <= 8
        assert built.tally.most_in_a_minute("ana") <= 120
        assert await built.check() == []


def _script_calls(built: House) -> int:
    stats = cast("dict[str, dict[str, int]]", built.client.info("commandstats"))
    return stats["cmdstat_evalsha"]["calls"]


def _used(usage: bytes) -> set[int]:
    return {limit["used"] for limit in json.loads(usage)["limits"]}


async def _settled(built: House) -> bool:
    return await built.admin.metric(built.worker, "llmweir_outbox_records") == 0


async def _caller_with_one_request_a_minute(built: House) -> Caller:
    ana = await built.admin.caller(built.worker, "ana", rpm_limit=1, max_parallel_requests=1, max_budget=1)
    await ana.list_models(built.worker)
    return ana  # whose key is known to the worker, so that an admission is the first that it asks


async def _nothing_was_consumed(built: House, ana: Caller) -> None:
    """The one request of the minute is still there; it passes, the next does not."""
    await built.all_ready()

    async def is_clear() -> bool:
        usage = await built.admin.get(built.worker, "/user/usage?user_id=ana")
        return usage.status == 200 and _used(usage.body) == {0}

    await until_async(is_clear, "the cancelled admission holds nothing")
    assert built.tally.of("ana") == []
    assert [(await ana.chat(built.worker)).status for _ in range(2)] == [200, 429]
    books = await built.balanced("ana")
    assert books.days_requests == 1
