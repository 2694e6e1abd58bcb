"""The store is away: whoever was in before passes where that is wanted, and what is used is charged later, once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from pathlib import Path

import pytest
from tests.faults.calls import Caller
from tests.faults.house import House, house
from tests.faults.upstream import Play
from tests.faults.waiting import until, until_async
from tests.faults.workers import Worker

from llmweir.engine import scripts

pytestmark = pytest.mark.faults

DEGRADED = "x-llmweir-degraded"
REPLAY = scripts.load("replay")


async def test_p11_callers_seen_before_pass_and_are_told_and_others_are_503(tmp_path: Path) -> None:
    async with house(tmp_path, on_store_failure="open") as built:
        ana, bob = await _known_and_unknown(built)
        _take_redis_away(built)
        for stream in (False, True):
            heard = await ana.chat(built.worker, stream=stream)
            assert (heard.status, heard.headers[DEGRADED]) == (200, "store-unavailable")
        assert (await bob.chat(built.worker)).code == "store_unavailable"
        assert await built.admin.metric(built.worker, "llmweir_requests_let_through_total") == 2
        assert await built.admin.metric(built.worker, "llmweir_outbox_records") >= 2
        await _bring_redis_back(built)
        heard = await ana.chat(built.worker)
        assert heard.status == 200
        assert DEGRADED not in heard.headers
        books = await built.balanced("ana")
        assert books.days_requests == 4
        assert await built.admin.metric(built.worker, "llmweir_outbox_records") == 0


async def test_p11_a_worker_started_anew_in_the_outage_still_knows_its_callers(tmp_path: Path) -> None:
    async with house(tmp_path, on_store_failure="open") as built:
        ana, bob = await _known_and_unknown(built)
        await until(lambda: _written_callers(built) == 1, "the caller is written down")
        _take_redis_away(built)
        built.worker.kill()
        await built.worker.start()
        readiness = await built.admin.get(built.worker, "/health/readiness")
        assert (readiness.status, json.loads(readiness.body)["status"]) == (200, "degraded")
        heard = await ana.chat(built.worker)
        assert (heard.status, heard.headers.get(DEGRADED)) == (200, "store-unavailable"), heard.body
        assert (await bob.chat(built.worker)).status == 503
        await _bring_redis_back(built)
        books = await built.balanced("ana")
        assert books.days_requests == 2


async def test_p11_who_was_shut_out_before_the_outage_does_not_get_in_by_it(tmp_path: Path) -> None:
    async with house(tmp_path, on_store_failure="open") as built:
        ana, _ = await _known_and_unknown(built)
        blocked = await built.admin.post(built.worker, "/user/block", {"user_ids": ["ana"]})
        assert blocked.status == 200
        assert (await ana.chat(built.worker)).status == 403
        _take_redis_away(built)
        assert (await ana.chat(built.worker)).status == 503


async def test_p11_requests_in_flight_when_redis_goes_away_are_charged_once_when_it_is_back(tmp_path: Path) -> None:
    async with house(tmp_path, lease_ttl_s=30) as built:
        ana, _ = await _known_and_unknown(built)
        await _use_during_an_outage(built, ana, built.worker)
        assert await built.admin.metric(built.worker, "llmweir_outbox_records") == 10
        assert (await ana.chat(built.worker)).status == 503
        await _bring_redis_back(built)
        books = await built.balanced("ana")
        assert (books.days_requests, books.lapsed) == (11, {})
        built.worker.kill()
        await built.worker.start()
        await built.all_ready()
        assert await built.balanced("ana") == books


@pytest.mark.parametrize("mode", ["closed", "open"])
async def test_p11_the_outbox_of_a_worker_killed_in_the_outage_is_replayed_once_by_another(
    tmp_path: Path, mode: str
) -> None:
    async with house(tmp_path, workers=2, on_store_failure=mode, lease_ttl_s=30) as built:
        ana, _ = await _known_and_unknown(built)
        await _use_during_an_outage(built, ana, built.workers[1])
        if mode == "open":
            assert [(await ana.chat(built.workers[1])).status for _ in range(5)] == [200] * 5
        built.workers[1].kill()
        await _bring_redis_back(built, built.worker)
        books = await built.balanced("ana", patience_s=30.0)
        assert (books.days_requests, books.lapsed) == (16 if mode == "open" else 11, {})
        await built.workers[1].start()
        await built.all_ready()
        assert await built.balanced("ana") == books


@pytest.mark.parametrize("mode", ["closed", "open"])
async def test_p11_a_worker_killed_in_the_middle_of_the_replay_leaves_the_rest_to_another_and_nothing_is_charged_twice(
    tmp_path: Path, mode: str
) -> None:
    async with house(tmp_path, workers=2, on_store_failure=mode, lease_ttl_s=30) as built:
        ana, _ = await _known_and_unknown(built)
        await _use_during_an_outage(built, ana, built.workers[1])
        built.worker.kill()  # so that nobody else replays
        _drop_the_reply_to_a_replay(built)
        await built.wire.accept()
        await until(lambda: built.wire.dropped, "a replay was carried out, and nobody told")
        built.workers[1].kill()
        assert built.books("ana").days_requests > 1
        await built.worker.start()
        await built.ready(built.worker)
        books = await built.balanced("ana", patience_s=30.0)
        assert (books.days_requests, books.lapsed) == (11, {})
        assert await built.check() == []


async def test_p11_a_replay_whose_reply_is_lost_is_repeated_and_charged_once(tmp_path: Path) -> None:
    async with house(tmp_path, on_store_failure="open", lease_ttl_s=30) as built:
        ana, _ = await _known_and_unknown(built)
        _take_redis_away(built)
        assert [(await ana.chat(built.worker)).status for _ in range(10)] == [200] * 10
        _drop_the_reply_to_a_replay(built)
        await _bring_redis_back(built)
        books = await built.balanced("ana")
        assert built.wire.dropped == 1
        assert books.days_requests == 11


async def _known_and_unknown(built: House) -> tuple[Caller, Caller]:
    """One caller whom every worker has let in before, once in all counted, and one whom none has seen."""
    ana = await built.admin.caller(built.worker, "ana", max_budget=1)
    bob = await built.admin.caller(built.worker, "bob")
    assert (await ana.chat(built.worker)).status == 200
    for worker in built.workers[1:]:
        await ana.list_models(worker)
    return ana, bob


def _written_callers(built: House) -> int:
    with contextlib.suppress(sqlite3.OperationalError):  # the file is not there yet
        file = sqlite3.connect(built.folder / "data" / "known-callers.sqlite")
        with contextlib.closing(file):
            return int(file.execute("SELECT count(*) FROM callers").fetchone()[0])
    return 0


def _drop_the_reply_to_a_replay(built: House) -> None:
    built.client.script_load(REPLAY.source)  # else the first reply says that it is not there
    built.wire.drop_reply_to = REPLAY.sha


def _take_redis_away(built: House) -> None:
    built.wire.refuse()
    built.wire.reset()


async def _bring_redis_back(built: House, *workers: Worker) -> None:
    await built.wire.accept()
    for worker in workers or built.workers:

        async def is_up(worker: Worker = worker) -> bool:
            return await built.admin.metric(worker, "llmweir_store_up") == 1

        await until_async(is_up, "Redis is seen again")


async def _use_during_an_outage(built: House, caller: Caller, worker: Worker) -> None:
    """Has ten requests admitted, which are all answered after Redis has gone away."""
    running = [asyncio.create_task(caller.chat(worker, Play(10, 0.1), stream=index > 5)) for index in range(10)]
    await built.at_work(caller.name, 10)
    _take_redis_away(built)
    assert [heard.status for heard in await asyncio.gather(*running)] == [200] * 10

    async def is_kept() -> bool:
        return await built.admin.metric(worker, "llmweir_outbox_records") >= 10

    await until_async(is_kept, "the settlements are in the outbox")
