"""Workers that die or stand still: their slots come free, what they held is charged, and nothing is charged twice."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from tests.faults.calls import CUT
from tests.faults.house import house
from tests.faults.load import load
from tests.faults.upstream import Play
from tests.faults.waiting import until, until_async

pytestmark = pytest.mark.faults

TTL_S = 2
SLACK_S = 4.0


async def test_p7_the_slots_of_a_worker_killed_in_mid_stream_come_free_and_are_charged_as_held(tmp_path: Path) -> None:
    async with house(tmp_path, workers=2, lease_ttl_s=TTL_S) as built:
        ana = await built.admin.caller(built.worker, "ana", max_parallel_requests=1, max_budget=1)
        running = asyncio.create_task(ana.chat(built.workers[1], Play(1000, 0.02), stream=True))
        await built.at_work("ana", 1)
        assert (await ana.chat(built.worker)).code == "parallel_limit_exceeded"
        held = built.books("ana").held_of
        killed_s = time.monotonic()
        built.workers[1].kill()
        assert (await running).status == CUT

        async def passes() -> bool:
            return (await ana.chat(built.worker)).status == 200

        await until_async(passes, "the slot is free")
        assert time.monotonic() - killed_s < TTL_S + SLACK_S
        books = await built.balanced("ana")
        assert books.lapsed == held
        assert books.days_requests == 2
        assert await built.admin.metric(built.worker, "llmweir_leases_expired_total") == 1


async def test_p7_a_stream_that_outlives_many_leases_keeps_its_slot(tmp_path: Path) -> None:
    async with house(tmp_path, workers=2, lease_ttl_s=TTL_S) as built:
        ana = await built.admin.caller(built.worker, "ana", max_parallel_requests=1, max_budget=1)
        running = asyncio.create_task(ana.chat(built.worker, Play(70, 0.1), stream=True))
        await built.at_work("ana", 1)
        heard = set()
        while not built.tally.of("ana")[0].is_whole:
            heard.add((await ana.chat(built.workers[1])).code)
            await asyncio.sleep(0.05)
        assert (await running).status == 200
        assert "parallel_limit_exceeded" in heard
        assert heard <= {"parallel_limit_exceeded", ""}  # the last may have come just after its end
        books = await built.balanced("ana")
        assert books.lapsed == {}
        assert built.tally.most_in_flight("ana") == 1
        assert (await ana.chat(built.workers[1])).status == 200


async def test_p7_a_worker_stopped_past_its_leases_does_not_charge_twice_when_it_goes_on(tmp_path: Path) -> None:
    async with house(tmp_path, workers=2, lease_ttl_s=TTL_S, store_timeout_ms=500) as built:
        ana = await built.admin.caller(built.worker, "ana", max_parallel_requests=3, max_budget=1)
        running = [
            asyncio.create_task(ana.chat(built.workers[1], Play(5, 0.05), stream=stream))
            for stream in (True, False, True)
        ]
        await built.at_work("ana", 3)
        built.workers[1].send(signal.SIGSTOP)

        async def has_lapsed() -> bool:
            await built.admin.info(built.worker, "ana")
            return len(built.books("ana").lapsed) == 3

        await until_async(has_lapsed, "the leases have expired")
        held = built.books("ana").spent
        built.workers[1].send(signal.SIGCONT)
        assert [heard.status for heard in await asyncio.gather(*running)] == [200] * 3
        await until(lambda: not built.books("ana").lapsed, "the late settlements put it right")
        books = await built.balanced("ana")
        assert (books.days_requests, books.spent) == (3, built.tally.cost_nanos("ana"))
        assert books.spent < held


async def test_p7_workers_killed_one_after_the_other_under_load_lose_nothing_and_let_nobody_past_a_limit(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, workers=3, lease_ttl_s=TTL_S) as built:
        ana = await built.admin.caller(built.worker, "ana", max_parallel_requests=6, rpm_limit=200, max_budget=1)
        bob = await built.admin.caller(built.worker, "bob", max_budget=1)
        async with load([ana] * 6 + [bob] * 4, built.workers) as running:
            for worker in (built.workers[1], built.workers[2], built.workers[1]):
                await running.goes_on()
                worker.kill()
                await worker.start()
        assert set(running.statuses) <= {200, 429, CUT}
        for caller in (ana, bob):
            await built.balanced(caller.name)
        assert built.tally.most_in_flight("ana") <= 6
        assert built.tally.most_in_a_minute("ana") <= 200
        assert await built.check() == []


async def test_p7_a_dead_worker_of_several_is_replaced_and_the_others_go_on(tmp_path: Path) -> None:
    async with house(tmp_path, workers=0, lease_ttl_s=TTL_S) as built:
        await built.add_worker(workers=3).start()
        await built.all_ready()
        ana = await built.admin.caller(built.worker, "ana", max_budget=1)
        async with load([ana] * 6, built.workers) as running:
            await running.goes_on()
            before = built.worker.children()
            assert len(before) == 3
            os.kill(before[0], signal.SIGKILL)
            await until(lambda: "worker_replaced" in built.worker.log, "it is replaced")
            await running.goes_on(times=30)
        assert set(running.statuses) <= {200, CUT}
        await until(lambda: len(set(built.worker.children()) - {before[0]}) == 3, "there are three again")
        await built.balanced("ana")
