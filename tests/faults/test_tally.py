"""The instruments themselves: a tally that cannot fail would prove nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.faults.books import what_does_not_balance
from tests.faults.calls import CUT
from tests.faults.house import house
from tests.faults.tally import Served, Tally
from tests.faults.upstream import Play

pytestmark = pytest.mark.faults


def _tally(*times: tuple[float, float, float]) -> Tally:
    tally = Tally()
    for number, (sent_s, arrived_s, ended_s) in enumerate(times):
        tally.begin(Served(f"r{number}", "ana", sent_s, arrived_s, 1, 1, ended_s, is_whole=True))
    return tally


def test_the_tally_counts_what_was_in_flight_at_once() -> None:
    assert _tally((0, 1, 3), (1, 2, 5), (3, 3, 4)).most_in_flight("ana") == 2


def test_the_tally_counts_the_fullest_minute_wherever_it_begins() -> None:
    assert _tally((0, 1, 1), (50, 51, 51), (59, 59.5, 60), (100, 109, 110)).most_in_a_minute("ana") == 3


def test_the_tally_does_not_count_what_may_have_been_admitted_outside_the_minute() -> None:
    assert _tally((0, 1, 1), (59, 60.5, 61)).most_in_a_minute("ana") == 1


async def test_books_balance_over_all_workers_and_a_nano_too_much_shows(tmp_path: Path) -> None:
    async with house(tmp_path, workers=2) as built:
        ana = await built.admin.caller(built.worker, "ana", max_budget=1)
        calls = [ana.chat(built.workers[index % 2], Play(2, 0.01, 20, index), stream=index > 9) for index in range(20)]
        assert {heard.status for heard in await asyncio.gather(*calls)} == {200}
        books = await built.balanced("ana")
        assert books.spent == sum(20 * 1000 + index * 2000 for index in range(20))
        assert built.tally.most_in_flight("ana") > 1
        assert await built.check() == []
        built.tally.of("ana")[3].output_tokens += 1
        assert what_does_not_balance(books, built.tally, "ana") == [
            f"spent {books.spent}, expected {books.spent + 2000}"
        ]


async def test_the_wire_refuses_and_resets_as_it_is_told(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        reader, writer = await asyncio.open_connection("127.0.0.1", built.wire.port)
        writer.write(b"PING\r\n")
        assert await reader.readline() == b"+PONG\r\n"
        built.wire.reset()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()
        built.wire.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", built.wire.port)
        built.worker.kill()
        assert (await built.admin.get(built.worker, "/metrics")).status == CUT
