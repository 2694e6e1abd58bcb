"""What Redis holds of one user, read and written by the scripts of the record: each call one script, all or nothing."""

from __future__ import annotations

import asyncio
import secrets
import struct
import time
from collections.abc import Callable, Sequence

import msgspec

from llmweir.engine import keys, scripts
from llmweir.engine.any_link import AnyLink
from llmweir.engine.flatten import Change
from llmweir.engine.replies import int_of, list_of, text_of
from llmweir.engine.wire import Reply

_DAYS_A_CALL = 31
_VERSION_BITS = 32
_ACCOUNT = struct.Struct("<44xq4xq")
"""Of an account (`scripts.LAYOUTS`) what is spent in the period, and when that ends."""


class AccountState(msgspec.Struct, frozen=True):
    """An account as it stands now: requests and tokens of the last minute, requests in flight, money in nanos.

    `window_reset_ms` is the time until the window is empty, `ends_at_ms` when the budget's period is over (None:
    never, or, for a model's, with the user's).
    """

    requests: int = 0
    tokens: int = 0
    window_reset_ms: int = 0
    running: int = 0
    held_nanos: int = 0
    spent_nanos: int = 0
    ends_at_ms: int | None = None


class Stored(msgspec.Struct, frozen=True):
    """All of a user, as the store keeps it.

    The document, the accounts by name (`u`, `k:3`, `m:gpt-4*`), the rest of what is counted, and the fields of the
    record that are API keys (`k:HASH`).
    """

    user_id: str
    doc: dict[str, str]
    accounts: dict[str, AccountState]
    use: dict[str, str]
    keys: dict[str, str]


class DayRow(msgspec.Struct, frozen=True):
    """What a user has used of one model on one UTC day; `day` is its number since 1970-01-01."""

    day: int
    model: str
    requests: int
    failed: int
    input_tokens: int
    output_tokens: int
    cost_nanos: int


class UserData:
    """Reads and writes whole users; `clock` gives the time in ms instead of the server's clock (for tests)."""

    def __init__(self, link: AnyLink, *, memo_ttl_ms: int = 86_400_000, clock: Callable[[], int] | None = None) -> None:
        self.link = link
        self.clock = clock
        self.on_leases_expired: Callable[[int], None] | None = None
        self._memo_ttl_ms = memo_ttl_ms
        self._read = scripts.load("read")
        self._write = scripts.load("write")
        self._delete = scripts.load("delete")
        self._days = scripts.load("days")

    async def read(self, user_id: str) -> Stored | None:
        """Reads a user with the accounts as they stand now, or None."""
        user = keys.user_keys(user_id)
        reply = await self.link.run(self._read, user.record, user.doc, user.use, self._now(), self._memo_ttl_ms, keys=3)
        if reply is None:
            return None
        doc, accounts, use, key_fields, expired = list_of(reply)
        if self.on_leases_expired is not None and int_of(expired):
            self.on_leases_expired(int_of(expired))
        states = {text_of(row[0]): _account(row[1:]) for row in map(list_of, list_of(accounts))}
        return Stored(user_id, _fields(doc), states, _fields(use), _fields(key_fields))

    async def texts(self, user_ids: Sequence[str], names: Sequence[str]) -> list[list[str | None] | None]:
        """Reads some fields of the documents of many users, in their order; None where there is no such user."""
        fields = ("created_at_ms", *names)
        calls = [self.link.call(b"HMGET", keys.user_keys(user_id).doc, *fields) for user_id in user_ids]
        found = []
        for reply in await asyncio.gather(*calls):
            created, *texts = (text_of(part) if part is not None else None for part in list_of(reply))
            found.append(None if created is None else [created, *texts])
        return found

    async def spends(self, user_ids: Sequence[str]) -> list[int]:
        """Reads what many users have spent in their periods, in nanos, without the rest of the account."""
        now_ms = self.now_ms()
        calls = [self.link.call(b"HGET", keys.user_keys(user_id).use, b"u") for user_id in user_ids]
        return [_spent(account, now_ms) for account in await asyncio.gather(*calls)]

    async def write(self, user_id: str, mode: str, changes: Sequence[Change]) -> bool:
        """Carries out all changes to a record, or none where it is not there (mode `old`), or is (`new`)."""
        user = keys.user_keys(user_id)
        if mode == "new":  # a worker that knew a record of the same id, or of the same key's, takes no old one for it
            changes = [("set", "v", secrets.randbits(_VERSION_BITS)), *changes]
        flat = [part for change in changes for part in change]
        reply = await self.link.run(
            self._write, user.record, user.doc, user.use, self._now(), mode, self._memo_ttl_ms, *flat, keys=3
        )
        return list_of(reply)[0] == 1

    async def delete(self, user_id: str) -> bool:
        """Removes all of a user but the rows of the days; False where there is no such user."""
        user = keys.user_keys(user_id)
        reply = await self.link.run(
            self._delete, user.record, user.doc, user.use, user.leases, self._now(), self._memo_ttl_ms, keys=4
        )
        return reply == 1

    async def days(self, user_id: str, first_day: int, last_day: int) -> list[DayRow]:
        """Reads the rows of some days, oldest first; the user may be deleted."""
        record = keys.user_keys(user_id).record
        starts = range(first_day, last_day + 1, _DAYS_A_CALL)
        calls = [
            self.link.run(self._days, record, start, min(last_day, start + _DAYS_A_CALL - 1), keys=1)
            for start in starts
        ]
        found = [day for part in await asyncio.gather(*calls) for day in map(list_of, list_of(part))]
        return [_day_row(int_of(day), model, row) for day, flat in found for model, row in _fields(flat).items()]

    def now_ms(self) -> int:
        """The time by the worker's clock, for what is only shown."""
        return self.clock() if self.clock is not None else int(time.time() * 1000)

    def _now(self) -> int | bytes:
        return self.clock() if self.clock is not None else b""


def _account(row: list[Reply]) -> AccountState:
    requests, tokens, window_reset_ms, running, held, spent, ends = (int_of(number) for number in row)
    return AccountState(requests, tokens, window_reset_ms, running, held, spent, ends if ends >= 0 else None)


def _spent(account: Reply, now_ms: int) -> int:
    if not isinstance(account, bytes):
        return 0
    spent, ends_at_ms = _ACCOUNT.unpack(account)
    return spent if ends_at_ms < 0 or ends_at_ms > now_ms else 0


def _day_row(day: int, model: str, row: str) -> DayRow:
    return DayRow(day, model, *map(int, row.split()))


def _fields(flat: Reply) -> dict[str, str]:
    texts = [part.decode() if isinstance(part, bytes) else str(part) for part in list_of(flat)]
    return dict(zip(texts[::2], texts[1::2], strict=True))
