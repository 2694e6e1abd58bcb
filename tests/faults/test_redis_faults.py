"""Redis loses its scripts, its data, its memory or its life while the workers are busy."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.faults.house import House, house
from tests.faults.load import load
from tests.faults.waiting import until, until_async

pytestmark = pytest.mark.faults


async def test_a_redis_killed_under_load_and_started_from_its_append_only_file_has_lost_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, workers=2, lease_ttl_s=30) as built:
        ana = await built.admin.caller(built.worker, "ana", max_budget=1, rpm_limit=300, max_parallel_requests=6)
        bob = await built.admin.caller(built.worker, "bob", max_budget=1)
        async with load([ana] * 8 + [bob] * 4, built.workers) as running:
            for _ in range(3):
                await running.goes_on()
                built.redis.kill()
                await running.goes_on(503)
                await built.redis.start()
            await running.goes_on()
        assert set(running.statuses) <= {200, 429, 503}
        for caller in (ana, bob):
            books = await built.balanced(caller.name)
            assert books.lapsed == {}
        assert built.tally.most_in_flight("ana") <= 6
        assert built.tally.most_in_a_minute("ana") <= 300
        assert await built.check() == []


async def test_flushing_the_scripts_under_load_is_seen_by_nobody(tmp_path: Path) -> None:
    async with house(tmp_path, workers=2) as built:
        ana = await built.admin.caller(built.worker, "ana", max_budget=1, max_parallel_requests=8)
        async with load([ana] * 8, built.workers) as running:
            for _ in range(10):
                await running.goes_on()
                built.client.script_flush()
        assert set(running.statuses) == {200}
        books = await built.balanced("ana")
        assert books.days_requests == running.statuses[200]


async def test_flushing_all_data_under_load_makes_strangers_of_the_callers_and_ends_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, workers=2) as built:
        ana = await built.admin.caller(built.worker, "ana", max_budget=1)
        pids = [worker.pid for worker in built.workers]
        async with load([ana] * 8, built.workers) as running:
            await running.goes_on()
            built.client.flushall()
            await running.goes_on(401)
        assert set(running.statuses) == {200, 401}
        await until_async(lambda: _nothing_kept(built), "nothing is kept for later")
        left = {key.rpartition(b":")[0] for key in built.client.scan_iter(match="lw:{u:ana}*")}
        assert left <= {b"lw:{u:ana}:day", b"lw:{u:ana}:memo"}  # what was used by those in flight is in the books
        bob = await built.admin.caller(built.worker, "bob", max_budget=1)
        async with load([bob] * 4, built.workers) as running:
            await running.goes_on()
        assert set(running.statuses) == {200}
        await built.balanced("bob")
        assert [worker.pid for worker in built.workers] == pids
        assert all("Traceback" not in worker.log for worker in built.workers)


async def test_a_redis_that_is_full_is_503_and_nothing_is_left_half_written(tmp_path: Path) -> None:
    async with house(tmp_path, workers=2, lease_ttl_s=30) as built:
        ana = await built.admin.caller(built.worker, "ana", max_budget=1, rpm_limit=500, tpm_limit=100_000)
        async with load([ana] * 8, built.workers) as running:
            for _ in range(3):
                await running.goes_on()
                built.client.config_set("maxmemory", "1")
                await running.goes_on(503)
                built.client.config_set("maxmemory", "0")
            await running.goes_on()
        assert set(running.statuses) <= {200, 429, 503}
        books = await built.balanced("ana")
        assert books.lapsed == {}
        assert built.tally.most_in_a_minute("ana") <= 500
        assert await built.check() == []


async def test_a_slow_redis_is_waited_for_and_one_too_slow_is_503_until_it_is_not(tmp_path: Path) -> None:
    async with house(tmp_path, store_timeout_ms=1500, lease_ttl_s=30) as built:
        ana = await built.admin.caller(built.worker, "ana", max_budget=1)
        built.wire.delay_s = 0.05
        assert [heard.status for heard in await asyncio.gather(*(ana.chat(built.worker) for _ in range(10)))] == [
            200
        ] * 10
        built.wire.delay_s = 2.0
        assert {heard.status for heard in await asyncio.gather(*(ana.chat(built.worker) for _ in range(10)))} == {503}
        built.wire.delay_s = 0.0
        await built.all_ready()
        assert (await ana.chat(built.worker)).status == 200
        books = await built.balanced("ana")
        assert books.days_requests == 11


async def test_a_partition_in_either_direction_refuses_at_once_and_heals(tmp_path: Path) -> None:
    async with house(tmp_path, workers=2, store_timeout_ms=500, lease_ttl_s=30) as built:
        ana = await built.admin.caller(built.worker, "ana", max_budget=1, rpm_limit=400, max_parallel_requests=6)
        async with load([ana] * 8, built.workers) as running:
            for way in ("there", "back", "there", "back"):
                await running.goes_on()
                built.wire.shut(way)
                await running.goes_on(503)
                built.wire.open()
            await running.goes_on()
        assert set(running.statuses) <= {200, 429, 503}
        await until(lambda: built.books("ana").leases == 0, "no lease is left")
        books = await built.balanced("ana")
        assert books.lapsed == {}
        assert built.tally.most_in_flight("ana") <= 6
        assert built.tally.most_in_a_minute("ana") <= 400


async def _nothing_kept(built: House) -> bool:
    kept = [await built.admin.metric(worker, "llmweir_outbox_records") for worker in built.workers]
    return sum(kept) == 0
