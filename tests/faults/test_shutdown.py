"""A server that is told to end: no new requests, what runs finishes and is settled, the bundled Valkey goes last."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp
import pytest
from tests.faults.calls import CUT
from tests.faults.house import bundled_processes, house
from tests.faults.load import load
from tests.faults.upstream import Play
from tests.faults.waiting import until, until_async

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("end", ["SIGTERM", "SIGINT to the group"])
async def test_running_streams_finish_and_are_settled_and_the_bundled_valkey_goes_last(
    tmp_path: Path, workers: int, end: str
) -> None:
    async with house(tmp_path, workers=0, bundled=True) as built:
        server = built.add_worker(workers=workers)
        await server.start()
        await until(lambda: server.log.count("store_connected") == workers, "every worker serves")
        ana = await built.admin.caller(server, "ana", max_budget=1)
        running = [asyncio.create_task(ana.chat(server, Play(15, 0.1), stream=True)) for _ in range(5)]
        await built.at_work("ana", 5)
        if end == "SIGTERM":
            server.send(signal.SIGTERM)
        else:
            server.send_group(signal.SIGINT)

        async def refuses() -> bool:
            return (await ana.chat(server)).status in (CUT, 503)

        await until_async(refuses, "no new request is taken")
        assert bundled_processes(tmp_path)
        assert [heard.status for heard in await asyncio.gather(*running)] == [200] * 5
        assert await server.ended() == 0
        await until(lambda: not bundled_processes(tmp_path), "the bundled Valkey is gone")
        assert "Traceback" not in server.log, server.log
        await server.start()
        await built.all_ready()
        books = await built.balanced("ana")
        assert books.lapsed == {}
        assert books.days_requests == len(built.tally.of("ana"))


async def test_ending_under_load_settles_every_request_that_was_let_in(tmp_path: Path) -> None:
    async with house(tmp_path, workers=2) as built:
        ana = await built.admin.caller(built.worker, "ana", max_budget=1)
        async with load([ana] * 8, built.workers) as running:
            for _ in range(3):
                await running.goes_on()
                built.workers[1].send(signal.SIGTERM)
                assert await built.workers[1].ended() == 0
                await built.workers[1].start()
        assert set(running.statuses) <= {200, CUT}
        books = await built.balanced("ana")
        assert books.lapsed == {}
        assert books.days_requests == running.statuses[200]


async def test_a_worker_that_drains_takes_no_new_connection(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        ana = await built.admin.caller(built.worker, "ana", max_budget=1)
        running = asyncio.create_task(ana.chat(built.worker, Play(10, 0.1), stream=True))
        await built.at_work("ana", 1)
        built.worker.send(signal.SIGTERM)

        async def refuses() -> bool:
            try:
                async with built.session.get(built.worker.url + "/health/liveliness"):
                    return False
            except aiohttp.ClientConnectorError:
                return True

        await until_async(refuses, "connections are refused")
        assert not running.done()
        assert (await running).status == 200
        assert await built.worker.ended() == 0
        await built.worker.start()
        await built.all_ready()
        await built.balanced("ana")


async def test_ctrl_c_while_workers_start_is_quiet(tmp_path: Path) -> None:
    async with house(tmp_path, workers=0) as built:
        server = built.add_worker(workers=3)
        await server.start()
        await until(lambda: len(server.children()) == 3, "three workers begin to start")
        server.send_group(signal.SIGINT)
        await server.ended()
        assert "Traceback" not in server.log, server.log
        assert "worker_replaced" not in server.log, server.log
