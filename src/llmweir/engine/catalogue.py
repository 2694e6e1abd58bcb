"""A catalogue of records: where each stands in the orders and the groups that lists are read from.

A catalogue lies in one slot, its records in many, so the two cannot be written at once. Each entry has a row that says
where it is filed, and one script changes the row and all the places together: a catalogue is always right in itself.
What may differ is the record. So a writer opens the row, writes the record, and closes the row with what the record is
then; what stays open is filed by the next listing, after the record, before it counts anything. A nonce in the row
sees to it that nobody files what was read before somebody else wrote.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from itertools import accumulate
from typing import TypeAlias, cast

import msgspec

from llmweir.engine import scripts
from llmweir.engine.any_link import AnyLink
from llmweir.engine.claims import WRITING_MS
from llmweir.engine.keys import CatalogueKeys
from llmweir.engine.wire import Reply, ReplyError
from llmweir.errors import StoreUnavailableError

CHUNK = 1_000
"""How many entries one command reads at most: about a millisecond of Redis."""

_HEALED_AT_ONCE = 100
_ATTEMPTS = 3
_FILED = 2

Lines: TypeAlias = str
"""A row as `file_row.lua` reads it: each line with its end; empty where there is no record."""


class Order(msgspec.Struct, frozen=True):
    """Sorted sets to read one after the other, from their ends where `is_reversed`."""

    places: tuple[bytes, ...]
    is_reversed: bool


class Catalogue:
    """One catalogue; `truth` reads the records of many ids afresh, each as the lines of its row.

    `clock` gives the time in ms instead of the server's clock (for tests).
    """

    def __init__(
        self,
        link: AnyLink,
        keys: CatalogueKeys,
        truth: Callable[[Sequence[str]], Awaitable[list[Lines]]],
        *,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self._link = link
        self._keys = keys
        self._truth = truth
        self._clock = clock
        self._open = scripts.load("open_row")
        self._close = scripts.load("close_row")
        self._heal = scripts.load("heal_row")

    @contextlib.asynccontextmanager
    async def writing(self, entry_id: str) -> AsyncIterator[None]:
        """Wraps the write that makes, changes or deletes a record, and files the entry as the record is after it.

        Nothing that goes wrong with the filing fails the write: the next listing finds the row open.
        """
        nonce = await self.open(entry_id)
        try:
            yield
        finally:
            with contextlib.suppress(StoreUnavailableError, ReplyError):
                await self.close(entry_id, nonce)

    async def open(self, entry_id: str) -> str:
        """Notes that a record is about to be written; the nonce is for `close`."""
        nonce, rows, writing = _nonce(), self._keys.rows, self._keys.writing
        await self._link.run(self._open, rows, writing, self._now(), entry_id, nonce, WRITING_MS, keys=2)
        return nonce

    async def close(self, entry_id: str, nonce: str) -> None:
        """Files an entry as its record is now."""
        (lines,) = await self._truth([entry_id])
        base, rows, writing = self._keys.base, self._keys.rows, self._keys.writing
        await self._link.run(self._close, base, rows, writing, entry_id, nonce, _nonce(), lines, keys=3)

    async def heal(self, ids: Sequence[str]) -> list[Reply]:
        """Files a few entries as their records are; the replies of `heal_row.lua`."""
        rows = await self._raw_rows(ids)  # before the truth: a row that has not changed since proves it is not old
        truths = await self._truth(ids)
        return await asyncio.gather(
            *(self._filed(entry_id, row, lines) for entry_id, row, lines in zip(ids, rows, truths, strict=True))
        )

    async def file_again(self, ids: Sequence[str]) -> None:
        """Heals any number of entries, a few at a time, so that Redis has time for others in between."""
        for start in range(0, len(ids), _HEALED_AT_ONCE):
            await self.heal(ids[start : start + _HEALED_AT_ONCE])

    async def listed(self, find: Callable[[], Awaitable[tuple[list[str], int]]]) -> tuple[dict[str, Lines], int]:
        """Has `find` find a page of ids and the total, and gives those that exist with the lines of their records.

        What was left open is filed before, and what is not filed as its record is gets filed and found again.
        """
        await self._heal_what_is_open()
        truths: dict[str, Lines] = {}
        total = 0
        for _ in range(_ATTEMPTS):
            ids, total = await find()
            rows, true_lines = await asyncio.gather(self.rows(ids), self._truth(ids))
            truths = dict(zip(ids, true_lines, strict=True))
            strays = [entry_id for entry_id, lines in zip(ids, rows, strict=True) if lines != truths[entry_id]]
            if not strays:
                break
            await self.heal(strays)
        existing = {entry_id: lines for entry_id, lines in truths.items() if lines}
        return existing, total - (len(truths) - len(existing))

    async def rows(self, ids: Sequence[str]) -> list[Lines]:
        """The lines that entries are filed by; empty for what is not filed."""
        return [row.partition("\n")[2] for row in await self._raw_rows(ids)]

    async def count(self, places: Iterable[bytes]) -> list[int]:
        """How many entries each of these places has."""
        return cast(list[int], await asyncio.gather(*(self._link.call(b"ZCARD", place) for place in places)))

    async def page(self, order: Order, start: int, stop: int) -> tuple[list[str], int]:
        """The ids from `start` up to `stop` in an order, and how many there are in all."""
        counts = await self.count(order.places)
        begins = accumulate(counts, initial=0)
        parts = await asyncio.gather(
            *(
                self._ids(place, max(0, start - begin), stop - begin, order)
                for place, begin, count in zip(order.places, begins, counts, strict=False)
                if begin < stop and start < begin + count
            )
        )
        return [entry_id for part in parts for entry_id in part], sum(counts)

    async def walk(self, order: Order) -> AsyncIterator[list[tuple[str, Lines]]]:
        """Reads all entries of an order with their lines, a chunk after the other."""
        for place in order.places:
            start = CHUNK
            ids = await self._ids(place, 0, CHUNK, order)
            while ids:
                rows, following = await asyncio.gather(self.rows(ids), self._ids(place, start, start + CHUNK, order))
                yield list(zip(ids, rows, strict=True))
                ids, start = following, start + CHUNK

    async def _heal_what_is_open(self) -> None:
        """Files what is open, the oldest first, as long as there is more that nobody is at work on."""
        while ids := await self._ids(self._keys.writing, 0, _HEALED_AT_ONCE, Order((), is_reversed=False)):
            if _FILED not in await self.heal(ids) or len(ids) < _HEALED_AT_ONCE:
                return

    async def _filed(self, entry_id: str, row: str, lines: Lines) -> Reply:
        base, rows, writing = self._keys.base, self._keys.rows, self._keys.writing
        return await self._link.run(
            self._heal, base, rows, writing, self._now(), entry_id, row, _nonce(), lines, WRITING_MS, keys=3
        )

    async def _raw_rows(self, ids: Sequence[str]) -> list[str]:
        if not ids:
            return []
        rows = cast(list[bytes | None], await self._link.call(b"HMGET", self._keys.rows, *ids))
        return [row.decode() if row is not None else "" for row in rows]

    async def _ids(self, place: bytes, start: int, stop: int, order: Order) -> list[str]:
        command = b"ZREVRANGE" if order.is_reversed else b"ZRANGE"
        members = cast(list[bytes], await self._link.call(command, place, start, stop - 1))
        return [(member.partition(b"\0")[2] or member).decode() for member in members]

    def _now(self) -> int | bytes:
        return self._clock() if self._clock is not None else b""


def _nonce() -> str:
    return secrets.token_hex(8)
