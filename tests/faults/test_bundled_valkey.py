"""The bundled Valkey and everything around it, killed in every combination: what was answered for is on disk."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import cast

import pytest
from tests.faults.calls import CUT
from tests.faults.house import House, bundled_client, bundled_processes, house, kill_bundled
from tests.faults.load import load

pytestmark = pytest.mark.faults


async def test_everything_killed_at_once_under_load_comes_back_from_the_append_only_file(tmp_path: Path) -> None:
    async with house(tmp_path, workers=2, bundled=True) as built:
        ana = await built.admin.caller(built.worker, "ana", max_budget=1, max_parallel_requests=6)
        async with load([ana] * 6, built.workers) as running:
            await running.goes_on(times=40)
            for worker in built.workers:
                worker.send_group(signal.SIGKILL)
            kill_bundled(tmp_path)
            await running.goes_on(CUT)
        await _start_again(built)
        assert (await built.admin.info(built.worker, "ana"))["max_parallel_requests"] == 6
        assert (await ana.chat(built.worker)).status == 200
        await built.balanced("ana")
        assert built.tally.most_in_flight("ana") <= 6
        assert await built.check() == []


async def test_a_server_orphaned_by_a_kill_is_taken_over_with_all_it_holds(tmp_path: Path) -> None:
    async with house(tmp_path, workers=2, bundled=True) as built:
        ana = await built.admin.caller(built.worker, "ana", max_budget=1)
        async with load([ana] * 4, built.workers) as running:
            await running.goes_on(times=20)
            orphan = _server_pid(tmp_path)
            for pid in bundled_processes(tmp_path):
                if pid != orphan:
                    os.kill(pid, signal.SIGKILL)
            for worker in built.workers:
                worker.send_group(signal.SIGKILL)
            await running.goes_on(CUT)
        await _start_again(built)
        assert (await ana.chat(built.worker)).status == 200
        await built.balanced("ana")
        assert _server_pid(tmp_path) != orphan
        assert len(_servers(tmp_path)) == 1


async def test_the_bundled_valkey_killed_under_load_is_started_again(tmp_path: Path) -> None:
    async with house(tmp_path, workers=2, bundled=True, lease_ttl_s=30) as built:
        ana = await built.admin.caller(built.worker, "ana", max_budget=1, rpm_limit=500, max_parallel_requests=6)
        async with load([ana] * 8, built.workers) as running:
            for _ in range(3):
                await running.goes_on()
                os.kill(_server_pid(tmp_path), signal.SIGKILL)
            await running.goes_on()
        assert set(running.statuses) <= {200, 429, 503}
        await built.all_ready()
        books = await built.balanced("ana")
        assert books.lapsed == {}
        assert built.tally.most_in_flight("ana") <= 6
        assert built.tally.most_in_a_minute("ana") <= 500


async def _start_again(built: House) -> None:
    for worker in built.workers:
        worker.kill()
        await worker.start()
    await built.all_ready()


def _server_pid(folder: Path) -> int:
    with bundled_client(folder) as client:
        return int(cast("dict[str, int]", client.info("server"))["process_id"])


def _servers(folder: Path) -> list[int]:
    return [pid for pid in bundled_processes(folder) if b"valkey-server" in Path(f"/proc/{pid}/cmdline").read_bytes()]
